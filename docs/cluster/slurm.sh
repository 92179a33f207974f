#!/usr/bin/env bash
# Samples histories as a Slurm array, one shard a task:
#
#     sbatch --export=ALL,SEED=7,HISTORIES=1000000 slurm.sh
#
# The results are in $RESULTS; see README.md beside this file for the other variables, and for how to merge.
#SBATCH --job-name=pagelease-lab
#SBATCH --array=0-63
#SBATCH --cpus-per-task=1
#SBATCH --mem=256M
#SBATCH --time=04:00:00
#SBATCH --output=pagelease-lab-%A_%a.log
set -euo pipefail

program=${PAGELEASE:-pagelease}
seed=${SEED:?SEED is not set: where the random numbers come from}
histories=${HISTORIES:-1000000}
results=${RESULTS:-results}
shard=${SLURM_ARRAY_TASK_ID:?this is the script of an array: submit it with sbatch}

# To submit a few tasks again, say how many there were: Slurm counts those of the new array. Otherwise the array has to be
# all of them, from 0.
shards=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
if [[ -z ${SHARDS:-} ]] && ((SLURM_ARRAY_TASK_MIN != 0 || SLURM_ARRAY_TASK_MAX != shards - 1)); then
    echo "the array is not 0-$((shards - 1)): set SHARDS to the number of shards of the whole run" >&2
    exit 2
fi

mkdir -p "$results"
# A file has its name only once it is whole: a task that is stopped half way leaves nothing that would be merged.
part=$results/shard-$shard.part
"$program" lab --random "$seed" --shard "$shard/$shards" --histories "$histories" \
    --threads "${SLURM_CPUS_PER_TASK:-1}" "$@" >"$part"
mv "$part" "$results/shard-$shard.jsonl"
