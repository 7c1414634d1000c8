#!/usr/bin/env bash
# One training run that survives losing nodes (DDP): start this on every node, at any time; the run begins with the fewest,
# takes in those that come, and after a loss starts again from its last good checkpoint with those that are left.
#
#   NODES=2:4 ENDPOINT=node0:29400 scripts/train_torchrun.sh train av-mnist data.dir=/shared/av-mnist --out /shared/runs/av-mnist
#
# NODES     fewest:most nodes (1)
# GPUS      processes a node (auto: its GPUs, or its cores where there are none)
# ENDPOINT  host:port of the node where they meet; the one node that must live on
# RUN_ID    a name, where several runs meet at one endpoint (mstdistill)
# RESTARTS  how often a node may start its processes again (10)
# The batch is a process's: with fewer nodes a step sees fewer instances, and results differ a little from an unbroken run's.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: scripts/train_torchrun.sh train RECIPE [key=value ...] --out FOLDER" >&2; exit 2; }
checkout="$(cd "$(dirname "$0")/.." && pwd)"
[ ! -x "$checkout/.venv/bin/python" ] || export PATH="$checkout/.venv/bin:$PATH"

nodes="${NODES:-1}"
if [ "$nodes" != 1 ] && [ -z "${ENDPOINT:-}" ]; then
    echo "train_torchrun.sh: several nodes need ENDPOINT=host:port, the same on all" >&2
    exit 2
fi
options=()
# numbered pods of Kubernetes: the first is where they meet, even before its name can be looked up
case "${JOB_COMPLETION_INDEX:-}" in
    "") ;;
    0) options+=(--rdzv_conf is_host=true) ;;
    *) options+=(--rdzv_conf is_host=false) ;;
esac
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# a store shared over restarts still holds the dead processes' addresses, and new ones that read them hang
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# how long a run that is asked to stop may save
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}"
exec torchrun --nnodes "$nodes" --nproc_per_node "${GPUS:-auto}" --max_restarts "${RESTARTS:-10}" \
    --rdzv_backend c10d --rdzv_endpoint "${ENDPOINT:-localhost:0}" --rdzv_id "${RUN_ID:-mstdistill}" \
    "${options[@]}" -m mstdistill "$@"
