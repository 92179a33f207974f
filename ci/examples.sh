#!/usr/bin/env bash
# Every example runs, and checks what it shows.
set -euo pipefail
drivers=$(ci/drivers.sh)
eval "$drivers"

for file in crates/*/examples/*.rs; do
    example=$(basename "$file" .rs)
    package=$(basename "$(dirname "$(dirname "$file")")")
    echo "--- $package: $example"
    cargo run --quiet --release --package "$package" --example "$example"
done
