#!/usr/bin/env bash
# Format and lints. The engine is linted in both of its configurations: as shipped, and for schedule exploration (the cfg
# swaps the synchronisation primitives; a target folder of its own keeps both builds warm).
set -euo pipefail

cargo fmt --all --check
cargo clippy --workspace --all-targets -- --deny warnings
# What is off by default.
cargo clippy --package pagelease-vulkan --features wgpu --all-targets -- --deny warnings
RUSTFLAGS='--cfg pagelease_shuttle' CARGO_TARGET_DIR=target/shuttle \
    cargo clippy --release --package pagelease --all-targets -- --deny warnings
