#!/usr/bin/env bash
# Samples histories with GNU parallel, one shard a process, as many at a time as there are CPUs, and merges them:
#
#     SEED=7 HISTORIES=1000000 ./parallel.sh [--design NAME] [--scenario NAME]
#
# Started again after it was stopped, it makes only the shards that are not there yet: so a run with another seed, design
# or number needs a folder of its own, $RESULTS. See README.md beside this file for the other variables.
set -euo pipefail

export PAGELEASE=${PAGELEASE:-pagelease}
export SEED=${SEED:?SEED is not set: where the random numbers come from}
export HISTORIES=${HISTORIES:-1000000}
export SHARDS=${SHARDS:-64}
export RESULTS=${RESULTS:-results}

sample() {
    local shard=$1
    shift
    # One thread: there is a process for every CPU already. A file has its name only once it is whole: a process that is
    # stopped half way leaves nothing that would be merged.
    "$PAGELEASE" lab --random "$SEED" --shard "$shard/$SHARDS" --histories "$HISTORIES" --threads 1 "$@" \
        >"$RESULTS/shard-$shard.part" && mv "$RESULTS/shard-$shard.part" "$RESULTS/shard-$shard.jsonl"
}
export -f sample

mkdir -p "$RESULTS"
for ((shard = 0; shard < SHARDS; shard++)); do
    [[ -e $RESULTS/shard-$shard.jsonl ]] || echo "$shard"
done | PARALLEL_SHELL=$BASH parallel --halt soon,fail=1 --quote sample {} "$@"

"$PAGELEASE" lab merge "$RESULTS"/shard-*.jsonl
