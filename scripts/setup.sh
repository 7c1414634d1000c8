# Sourced by the other scripts: a virtual environment in .venv with this project installed. EXTRAS names optional parts.
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "mstdistill needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
wanted="$(cat pyproject.toml setup.cfg | cksum) ${EXTRAS:-}"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (one or two minutes; torch is large)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${EXTRAS:+[$EXTRAS]}"
    echo "$wanted" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
