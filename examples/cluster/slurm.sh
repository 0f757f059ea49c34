#!/usr/bin/env bash
# A search on two nodes of eight GPUs each: sbatch slurm.sh. Change what is marked.
#SBATCH --job-name=modelswarms
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
set -euo pipefail

source "$HOME/venv/bin/activate" # CHANGE: an environment that all nodes see
BASE=$HOME/base EXPERTS=$HOME/experts DATA=$HOME/data.json OUT=$HOME/runs/$SLURM_JOB_ID # CHANGE: folders that all nodes see

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS=$head:6379

# Starts Ray on each node, runs the search on the first one, and stops Ray when the search has ended.
srun ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-gpus "$SLURM_GPUS_ON_NODE" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    modelswarms-fast search "$EXPERTS" --base "$BASE" --task exact_match --data "$DATA" --out "$OUT" --resume \
    --engines "$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))" --cluster auto
