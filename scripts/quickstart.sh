#!/usr/bin/env bash
# Set up in .venv and train av-digits, image student: the README's first command. Arguments go to `mstdistill train`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
exec mstdistill train av-digits "$@"
