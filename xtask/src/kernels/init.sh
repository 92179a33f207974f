#!/bin/sh
# The guest's first process. Runs what /job/commands says, tells the host what came of it, and switches the machine off.
# What programs print goes to two serial ports of their own, so that neither they nor the kernel talk into each other; and
# through pipes, since to a terminal some would print otherwise.
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
echo 1 >/proc/sys/vm/unprivileged_userfaultfd
mkfifo /tmp/stdout /tmp/stderr
cat /tmp/stdout >/dev/ttyS1 &
cat /tmp/stderr >/dev/ttyS2 &
exec 3>/tmp/stdout 4>/tmp/stderr

mark() {
    echo "@@ $*" >&3
    echo "@@ $*" >&4
}

# program NUMBER SECONDS [NAME=VALUE]... PROGRAM [ARGUMENT]...
program() {
    number=$1 seconds=$2
    shift 2
    mark begin "$number"
    read -r begun rest </proc/uptime
    setsid timeout -s KILL "$seconds" env "$@" </dev/null >&3 2>&4 3>&- 4>&- &
    job=$!
    wait "$job"
    status=$?
    read -r now rest </proc/uptime
    # What it left behind shall not disturb the next.
    kill -KILL "-$job" 2>/dev/null
    # From a new line, even if the program's last had no end.
    echo >&3
    echo >&4
    mark end "$number" "$status" "$begun" "$now"
}

read -r booted rest </proc/uptime
mark kernel "$booted" "$(uname -r)" "$(uname -v)"
cd /job || poweroff -f
. ./commands
mark over
# The ports are closed when they have sent everything.
exec 3>&- 4>&-
wait
poweroff -f
