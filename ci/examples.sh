#!/usr/bin/env bash
# Every example runs, and checks what it shows.
set -euo pipefail

for file in crates/pagelease/examples/*.rs; do
    example=$(basename "$file" .rs)
    echo "--- $example"
    cargo run --quiet --release --package pagelease --example "$example"
done
