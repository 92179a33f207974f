#!/usr/bin/env bash
# The main job: CPU threads and a device count the bytes of a real file in one shared table. Each fault mode and policy, each
# kind of memory with each backend that serves it, every device of the machine at once, and once as an ordinary user (uid 65534), who
# gets UFFD_USER_MODE_ONLY.
set -euo pipefail
drivers=$(ci/drivers.sh)
eval "$drivers"

cargo build --release --bin pagelease
program=target/release/pagelease
"$program" doctor
for faults in monitor in-thread; do
    for policy in lazy eager; do
        echo "--- $faults, $policy"
        "$program" run histogram Cargo.lock --faults "$faults" --policy "$policy" --unit pair
    done
done
for faults in monitor in-thread; do
    echo "--- every device, $faults"
    "$program" run histogram Cargo.lock --device all --faults "$faults" --unit pair
done
# Memory, backend and fault mode. What this kernel cannot do (adopted before Linux 6.8, rwprotect before 7.3, hugetlb without a
# page in the pool) ends with code 1 and says why: that is shown, and no failure. A wrong count is one, though its code is 1 too.
pool=/proc/sys/vm/nr_hugepages
folder=
pages_before=
clean_up() {
    [ -z "$pages_before" ] || echo "$pages_before" >"$pool"
    [ -z "$folder" ] || rm -rf "$folder"
}
trap clean_up EXIT
if [ -w "$pool" ] && [ "$(cat "$pool")" = 0 ]; then
    pages_before=0
    echo 4 >"$pool" || echo "no pool of huge pages can be made here"
fi
while read -r memory backend faults; do
    echo "--- $memory, $backend, $faults"
    said=$("$program" run histogram Cargo.lock --unit pair --memory "$memory" --backend "$backend" --faults "$faults" 2>&1) ||
        { [ $? = 1 ] && ! grep -q 'wrong: ' <<<"$said" && grep -qE 'lacks|nr_hugepages|of huge pages' <<<"$said"; } ||
        { echo "$said"; exit 1; }
    echo "$said"
done <<'COMBINATIONS'
shared minor monitor
shared minor in-thread
shared rwprotect monitor
shared rwprotect in-thread
shared mprotect in-thread
adopted auto monitor
adopted auto in-thread
hugetlb minor monitor
hugetlb minor in-thread
hugetlb mprotect in-thread
file mprotect in-thread
COMBINATIONS
if [ "$(id -u)" = 0 ]; then
    # Where an ordinary user can read it.
    folder=$(mktemp --directory)
    chmod 755 "$folder"
    cp "$program" Cargo.lock "$folder"
    for faults in monitor in-thread; do
        echo "--- as an ordinary user, $faults"
        setpriv --reuid=65534 --regid=65534 --clear-groups \
            "$folder/pagelease" run histogram "$folder/Cargo.lock" --faults "$faults"
    done
fi
