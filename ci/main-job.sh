#!/usr/bin/env bash
# The main job: CPU threads and a device count the bytes of a real file in one shared table. Each fault mode and policy, and
# once as an ordinary user (uid 65534), who gets UFFD_USER_MODE_ONLY.
set -euo pipefail

cargo build --release --bin pagelease
program=target/release/pagelease
"$program" doctor
for faults in monitor in-thread; do
    for policy in lazy eager; do
        echo "--- $faults, $policy"
        "$program" run histogram Cargo.lock --faults "$faults" --policy "$policy" --unit pair
    done
done
if [ "$(id -u)" = 0 ]; then
    # Where an ordinary user can read it.
    folder=$(mktemp --directory)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"
    cp "$program" Cargo.lock "$folder"
    for faults in monitor in-thread; do
        echo "--- as an ordinary user, $faults"
        setpriv --reuid=65534 --regid=65534 --clear-groups \
            "$folder/pagelease" run histogram "$folder/Cargo.lock" --faults "$faults"
    done
fi
