#!/usr/bin/env bash
# Set up in .venv and train av-digits, image student: the README's first command. Arguments go to `mstdistill train`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
mstdistill train av-digits "$@"
echo "with labels for a tenth of the pairs: .venv/bin/mstdistill train av-digits data.labelled=0.1 --preset labels"
