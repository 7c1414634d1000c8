#!/usr/bin/env bash
# Set up in .venv and pass all checks: format, lint, types, tests. The README's second command; CI runs the same.
# Arguments go to pytest, for example: scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=dev source scripts/setup.sh
ruff format --check --quiet .
ruff check --quiet .
mypy
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the tests are small: more threads only wait for each other
exec python -m pytest -n 2 "$@"
