#!/usr/bin/env bash
# The README's test command. Here the tests of the lab's page may not be skipped for want of a browser, nor those of a device for
# want of its driver.
set -euo pipefail
export PAGELEASE_NEEDS_CHROMIUM=1 PAGELEASE_NEEDS_DEVICES=1
drivers=$(ci/drivers.sh)
eval "$drivers"

cargo xtask test
# wgpu is many crates, and so is not among what the others are built with.
cargo test --package pagelease-vulkan --features wgpu --test webgpu
