#!/usr/bin/env bash
# Try a torch in an environment of its own: the newest that pip resolves, or the one that is named.
#   scripts/test_newest.sh            scripts/test_newest.sh 2.11.0
# Runs the quick part of the tests (kernels in Triton's interpreter among them) and a sample of ahead-of-time builds, and
# notes versions and results in docs/results/compatibility/, of which docs/compatibility.md's table is made.
set -euo pipefail
cd "$(dirname "$0")/.."
version="${1:-}"
place=".venv-${version:-newest}"
python="${PYTHON:-python3}"
[ -x "$place/bin/python" ] || "$python" -m venv "$place"
wanted="$(cat pyproject.toml setup.cfg | cksum) $version"
if [ "$(cat "$place/installed" 2> /dev/null)" != "$wanted" ]; then
    echo "installing torch ${version:-(the newest)} into $place (some minutes; torch is large)"
    "$place/bin/pip" install --quiet --disable-pip-version-check --no-compile ${version:+"torch==$version"} -e ".[dev]"
    # what is built for another torch can't be imported: as if it weren't there
    for name in torchvision torchaudio; do
        "$place/bin/python" -c "import $name" 2> /dev/null || echo "$name doesn't load beside this torch"
    done
    "$place/bin/python" -c "import torchvision" 2> /dev/null ||
        "$place/bin/pip" uninstall --quiet --yes torchvision timm
    # the interpreter of Triton 3.6, which the tests alone use, doesn't take a newer NumPy
    case "$("$place/bin/pip" show triton 2> /dev/null | grep ^Version)" in
        *" 3.6."*) "$place/bin/pip" install --quiet --disable-pip-version-check "numpy<2.4" ;;
    esac
    echo "$wanted" > "$place/installed"
fi
export PATH="$PWD/$place/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=33554432
unset PYTHONDONTWRITEBYTECODE # or each process would compile anew what isn't compiled yet
found="$(mktemp -d)"
trap 'rm -rf "$found"' EXIT
status=0
python -m pytest -n 2 --dist worksteal -m "not slow and not distributed" --junitxml="$found/tests.xml" || status=$?
if python -c "import triton" 2> /dev/null; then
    python -m mstdistill.kernels.aot --check tests/kernels/builds.json --fresh 12 > "$found/builds.txt" || status=$?
    cat "$found/builds.txt"
fi
python scripts/compatibility.py --note "$found"
exit "$status"
