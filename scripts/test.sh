#!/usr/bin/env bash
# Set up in .venv and pass all checks: format, lint, types, tests. The README's second command; CI runs the same.
# Of a few tests that take long a part is run, each commit another one (tests/rotation.py); all of them: scripts/test.sh --all
# Other arguments go to pytest, for example: scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=dev source scripts/setup.sh
part=(--part-of-commit)
if [ "${1:-}" = --all ]; then
    part=()
    shift
fi
ruff format --check --quiet .
ruff check --quiet .
said="$(mktemp)"
trap 'rm -f "$said"' EXIT
mypy > "$said" 2>&1 &  # beside the tests, which often wait
types=$!
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the tests are small: more threads only wait for each other
# tensors' memory is kept for the next ones: else a sixth of the time goes to getting it from the kernel again
export MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=33554432
unset PYTHONDONTWRITEBYTECODE # or each process would compile anew what isn't compiled yet
status=0
python -m pytest -n 2 --dist worksteal "${part[@]}" "$@" || status=$?
wait "$types" || status=$?
cat "$said"
exit "$status"
