#!/bin/bash
# A training run on the GPUs of one SLURM allocation, a process each. From the root of a checkout that every node sees,
# with .venv set up:
#
#   sbatch --nodes=12 configs/cluster/train-slurm.sh configs/train/anygpt-7b-pretrain.toml
#
# 12 nodes of 8 GPUs are 96 processes; `anygpt-train CONFIG --dry-run` lists the numbers that a batch divides over.
# Ten minutes before the time limit every process is sent SIGUSR1: the step is finished, its state saved, and the job put
# back into the queue. Cut off by a lost node it goes on from the last checkpoint; the same line again does so, too, on any
# number of nodes.
#SBATCH --job-name=anygpt-train
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log --open-mode=append
#SBATCH --nodes=1 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=12 --mem=0 --exclusive
#SBATCH --signal=B:USR1@600 --requeue

set -euo pipefail
if (( $# == 0 )); then
    echo "usage: sbatch $0 CONFIG [arguments of anygpt-train]" >&2
    exit 2
fi

# shellcheck disable=SC1091
source .venv/bin/activate
# Jobs of others on the same node have other ports.
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# Not torchrun: srun starts a process for every GPU itself, restarts none, and hands signals on to them. All GPUs of a node
# are seen by all of its processes, each of which takes the one of its number.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
    exec anygpt-train "$@"' anygpt-train "$@" &
run=$!

asked=0
trap 'asked=1; kill -USR1 "$run"' USR1  # srun hands it on to all processes
code=0
wait "$run" || code=$?
if (( asked )); then
    # The first wait ended with the signal, not with the run.
    code=0
    wait "$run" || code=$?
    (( code == 0 )) && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
