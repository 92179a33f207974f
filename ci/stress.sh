#!/usr/bin/env bash
# A longer stress on real memory than the tests have, optimised, with a new seed (which it prints).
set -euo pipefail

PAGELEASE_STRESS_FACTOR=${PAGELEASE_STRESS_FACTOR:-5} \
    cargo test --quiet --release --package pagelease --test stress -- --nocapture
