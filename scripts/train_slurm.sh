#!/usr/bin/env bash
# One training run over the nodes of a SLURM job: a launcher on each node, a process on each GPU. Submit it from the checkout:
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=8:00:00 scripts/train_slurm.sh train av-mnist data.dir=/shared/av-mnist --out /shared/runs/av-mnist
#
# Two minutes before the time limit, or when it is preempted, the run saves, stops and queues again under its number; SLURM
# repeats the command, and the run goes on. Its --out folder must be one that all nodes see.
#
#   CONFIG=launch_configs/fsdp2.yaml sbatch ...     another way to share a model (docs/clusters.md has the table)
#   GPUS=4 PORT=23456 GRACE=100 sbatch ...          processes a node, the port to meet at, seconds to save in
#SBATCH --job-name=mstdistill
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
out="" before=""
for word in "$@"; do
    case "$word" in --out=*) out="${word#--out=}" ;; esac
    [ "$before" != --out ] || out="$word"
    before="$word"
done
[ -n "$out" ] || { echo "usage: sbatch scripts/train_slurm.sh train RECIPE [key=value ...] --out FOLDER" >&2; exit 2; }
# SLURM runs a copy of this file, so its own folder says nothing
cd "${SLURM_SUBMIT_DIR:-.}"
[ -d launch_configs ] || { echo "train_slurm.sh: submit it from the checkout; $PWD has no launch_configs/" >&2; exit 2; }
[ ! -x .venv/bin/python ] || export PATH="$PWD/.venv/bin:$PATH"

nodes="${SLURM_JOB_NUM_NODES:-1}"
gpus="${GPUS:-${SLURM_GPUS_ON_NODE:-1}}"
processes=$((nodes * gpus))
config="${CONFIG:-launch_configs/$([ "$processes" -gt 1 ] && echo multi_node || echo single_process).yaml}"
[ -f "$config" ] || { echo "train_slurm.sh: no such config: $config" >&2; exit 2; }
# jobs that share a node need different ports; from 32768 on the system takes its own
port="${PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
cores="${SLURM_CPUS_PER_TASK:-$gpus}"
threads=$((cores / gpus))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
echo "train_slurm.sh: job $SLURM_JOB_ID, $nodes nodes x $gpus processes, $config, meeting at ${hosts[0]}:$port"

# SLURM signals every process of a step. The launchers ignore these two: they must neither die of USR1 nor pass on a TERM
# that the trainers have had already; the trainers listen, save and end. (srun doesn't take --cpus-per-task from sbatch.)
export PET_SIGNALS_TO_HANDLE=SIGINT
# shellcheck disable=SC2016  # SLURM_NODEID is each node's own
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cores" --kill-on-bad-exit=1 \
    bash -c 'trap "" USR1 TERM; exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launcher \
    --config_file "$config" --num_machines "$nodes" --num_processes "$processes" \
    --main_process_ip "${hosts[0]}" --main_process_port "$port" -m mstdistill "$@" &
step=$!
asked=""
trap 'asked=yes; kill -USR1 "$step" || true' USR1
code=0
wait "$step" || code=$?
[ -n "$asked" ] || exit "$code"

# woken by the signal: the run gets its time to save
for ((second = 0; second < ${GRACE:-100}; second++)); do
    kill -0 "$step" 2>/dev/null || break
    sleep 1
done
if ! kill -0 "$step" 2>/dev/null && wait "$step" && [ -f "$out/summary.json" ]; then
    echo "train_slurm.sh: finished in time"
    exit 0
fi
echo "train_slurm.sh: time is up; queueing again, the run goes on from its last checkpoint"
scontrol requeue "$SLURM_JOB_ID"
