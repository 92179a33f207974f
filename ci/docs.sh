#!/usr/bin/env bash
# The documentation builds without a warning: no broken link, nothing public undocumented. --no-deps: ours only.
set -euo pipefail

RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps
RUSTDOCFLAGS='--deny warnings' cargo doc --package pagelease-vulkan --features wgpu --no-deps
