#!/usr/bin/env bash
# The first minutes on a GPU: kernels tested and measured, then training, in stages that each leave a result in
# benchmarks/results/<gpu>/; what has one is not run again. Eight minutes at most. With torch, triton, numpy and pytest
# alone the kernels' stages run, with the whole package all of them.
#   scripts/gpu_check.sh                         scripts/gpu_check.sh --only kernels --only benchmarks
#   scripts/gpu_check.sh --rehearse              without a GPU: the same of little, on the CPU
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] && python="${PYTHON:-.venv/bin/python}"
"$python" -c 'import torch, numpy' || {
    echo "gpu_check needs torch (2.11 or newer), triton, numpy and pytest: pip install torch numpy pytest" >&2
    exit 2
}
python="$(realpath -s "$(command -v "$python")")"
# the package as it is installed, without installing it: kernels/ inside mstdistill/, away from the sources beside it
out="$PWD/benchmarks/results"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
cp -r mstdistill tests pyproject.toml "$stage/"
rm -rf "$stage/mstdistill/kernels"
cp -r kernels "$stage/mstdistill/kernels"
cd "$stage"
unset MSTDISTILL_KERNELS
PYTHONPATH="$stage${PYTHONPATH:+:$PYTHONPATH}" "$python" -m mstdistill.gpu_day --out "$out" "$@"
