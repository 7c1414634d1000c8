# Sourced by the other scripts: a virtual environment in .venv with this project installed. EXTRAS names optional parts.
# By uv where it is there, else by pip; INSTALLER=pip takes pip. However an earlier call was stopped, the next one goes
# on: `.venv/installed` is written last and removed first, and what a stopped installer left in halves is installed anew.
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "mstdistill needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
installer="${INSTALLER:-$(command -v uv > /dev/null && echo uv || echo pip)}"

has_pip() { .venv/bin/python -m pip --version > /dev/null 2>&1; }

make_environment() {
    if [ -e .venv ] && [ ! -e .venv/pyvenv.cfg ] && [ -n "$(ls -A .venv)" ]; then
        echo ".venv is there and is no virtual environment; move it away and run this again" >&2
        exit 2
    fi
    echo "making an environment in .venv"
    # uv needs no ensurepip, which some systems' Python comes without
    "$python" -m venv --clear --without-pip .venv
}

install_by() {
    case "$1" in
        uv) uv pip install --python .venv/bin/python "${@:2}" ;;
        pip)
            has_pip || .venv/bin/python -m ensurepip --default-pip > /dev/null || {
                echo "this Python can't make pip (on Debian and Ubuntu: apt install python3-venv)" >&2
                return 2
            }
            [ -t 1 ] || set -- "$@" --quiet # its bars of progress are for terminals
            .venv/bin/python -m pip install --disable-pip-version-check --no-compile "${@:2}"
            ;;
        *)
            echo "INSTALLER=$1: uv or pip" >&2
            return 2
            ;;
    esac
}

wanted="$(cat pyproject.toml setup.cfg | cksum) ${EXTRAS:-}"
if ! .venv/bin/python -c "" 2> /dev/null || [ "$(cat .venv/installed 2> /dev/null)" != "$wanted" ]; then
    .venv/bin/python -c "" 2> /dev/null || make_environment
    rm -f .venv/installed
    .venv/bin/python scripts/halves.py
    echo "installing into .venv by $installer: some minutes, most of them torch's download"
    install_by "$installer" -e ".${EXTRAS:+[$EXTRAS]}" || {
        status=$?
        hint="$([ "$installer" = pip ] || echo ", INSTALLER=pip tries pip")"
        [ "$status" = 2 ] || echo "the installation didn't end ($installer); the same command goes on with it$hint" >&2
        exit "$status"
    }
    # what every run imports is compiled here, the rest at its first import
    PYTHONDONTWRITEBYTECODE="" .venv/bin/python -c "import datasets, mstdistill.pipeline, sklearn.metrics" 2> /dev/null || true
    echo "$wanted" > .venv/installed.new
    mv .venv/installed.new .venv/installed
    echo "installed: $(du -sh .venv | cut -f 1) in .venv"
fi
export PATH="$PWD/.venv/bin:$PATH"
