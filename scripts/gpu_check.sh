#!/usr/bin/env bash
# On a machine with a GPU, with only torch, triton, numpy and pytest installed: test the compiled kernels, measure them
# against what else one could use, and write benchmarks/results/<gpu>/. Under eight minutes.
# Arguments go to the benchmark, for example: scripts/gpu_check.sh --kernel kd
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
"$python" -c 'import torch, triton, numpy, pytest' || {
    echo "gpu_check needs torch (2.11 or newer), triton, numpy and pytest: pip install torch numpy pytest" >&2
    exit 2
}
gpu="$("$python" -c 'import torch, re
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-") if torch.cuda.is_available() else "")')"
[ -n "$gpu" ] || { echo "gpu_check: torch sees no GPU; scripts/test.sh has the checks that need none" >&2; exit 2; }

# the package as it is installed, without installing it: kernels/ inside mstdistill/, away from the sources beside it
out="$PWD/benchmarks/results/$gpu"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
cp -r mstdistill tests pyproject.toml "$stage/"
cp -r kernels "$stage/mstdistill/kernels"
cd "$stage"
unset TRITON_INTERPRET MSTDISTILL_KERNELS

mkdir -p "$out"
timeout 240 "$python" -m pytest -q tests/gpu/test_kernels.py 2>&1 | tee "$out/tests.txt"
"$python" -m mstdistill.kernels.bench --budget 210 --baselines eager,compile,liger,sdpa \
    --json "$out/kernels.json" --markdown "$out/kernels.md" --plot "$out" "$@"
echo "results: $out"
