#!/usr/bin/env bash
# The stress on every kind of memory, optimised, with a new seed (which it prints). PAGELEASE_STRESS_FACTOR makes it longer.
set -euo pipefail

PAGELEASE_STRESS_FACTOR=${PAGELEASE_STRESS_FACTOR:-1} \
    cargo test --quiet --release --package pagelease --test stress -- --nocapture
