#!/bin/bash
# A Ray cluster inside one SLURM allocation of two parts: CPU nodes that decode, the first of them with the head and the
# driver, and GPU nodes that encode. From the root of a checkout that every node sees, with .venv set up:
#
#   sbatch configs/cluster/slurm.sh configs/cluster/laion2b.toml --set root=/shared/laion2b --set output=/shared/tokens
#
# Cut off by the time limit or by a lost node, the same line again does only what is missing.
#SBATCH --job-name=anygpt-tokenize
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=32 --mem=64G
#SBATCH hetjob
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=16 --mem=128G --gres=gpu:4

set -euo pipefail
if (( $# == 0 )); then
    echo "usage: sbatch $0 CONFIG [arguments of anygpt-tokenize]" >&2
    exit 2
fi

# shellcheck disable=SC1091
source .venv/bin/activate
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# Others share the network: without a token, whoever reaches the port may run code as you.
token_folder=$(mktemp -d -p "$HOME" .anygpt-ray-XXXXXX)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_folder/token
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

started=()
clean_up() {
    # One by one, the head last, for nodes take leave of it. `ray stop` would hit other jobs on a shared node.
    for (( i = ${#started[@]} - 1; i >= 0; i-- )); do
        kill "${started[i]}" 2>/dev/null || true
        wait "${started[i]}" 2>/dev/null || true
    done
    rm -rf "$token_folder"
}
trap clean_up EXIT

cpu_nodes=${SLURM_JOB_NUM_NODES_HET_GROUP_0:-$SLURM_JOB_NUM_NODES}
gpu_nodes=${SLURM_JOB_NUM_NODES_HET_GROUP_1:-0}
cores=${SLURM_CPUS_PER_TASK_HET_GROUP_0:-${SLURM_CPUS_PER_TASK:?}}
gpu_cores=${SLURM_CPUS_PER_TASK_HET_GROUP_1:-$cores}
head=${SLURMD_NODENAME:-$(hostname)}
# Jobs of others on the same node have other ports.
port=$((20000 + SLURM_JOB_ID % 10000))
address=$head:$port

# The head's node decodes too, with all cores but the two of the driver and of Ray itself.
own=$((cores > 2 ? cores - 2 : 1))
ray start --head --port="$port" --include-dashboard=false --num-cpus="$own" --num-gpus=0 \
    --resources="{\"decode\": $own}" --block &
started+=($!)
for _ in $(seq 60); do
    ray status --address "$address" >/dev/null 2>&1 && break
    sleep 2
done

if (( cpu_nodes > 1 )); then
    srun --het-group=0 --nodes=$((cpu_nodes - 1)) --ntasks=$((cpu_nodes - 1)) --exclude="$head" \
        --cpus-per-task="$cores" --kill-on-bad-exit=0 \
        ray start --address="$address" --num-cpus="$cores" --num-gpus=0 --resources="{\"decode\": $cores}" --block &
    started+=($!)
fi
if (( gpu_nodes > 0 )); then
    srun --het-group=1 --nodes="$gpu_nodes" --ntasks="$gpu_nodes" \
        --cpus-per-task="$gpu_cores" --kill-on-bad-exit=0 \
        ray start --address="$address" --num-cpus="$gpu_cores" --block &
    started+=($!)
fi

# Not exec: the trap has to run. Nodes that join later are used as soon as they are there.
RAY_ADDRESS=$address anygpt-tokenize "$@"
