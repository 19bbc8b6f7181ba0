# Sourced by the other scripts: finds a Python that has what requirements.txt names, or makes one.
#
# PYTHON=/path/to/python chooses one by hand. Otherwise: the active environment if it has everything,
# else .venv in the repository, which is made on the first call (again, if that was interrupted).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_has_requirements() {
    "$1" - "$ROOT/requirements.txt" <<'PY' 2>/dev/null
import re, sys
from importlib.metadata import version
assert sys.version_info >= (3, 9)
for line in open(sys.argv[1]):
    name = re.split(r"[<>=!~;\s#]", line.strip())[0]
    if name:
        version(name)
PY
}

if [ -z "${PYTHON:-}" ]; then
    if command -v python3 >/dev/null && _has_requirements python3; then
        PYTHON="$(command -v python3)"
    else
        PYTHON="$ROOT/.venv/bin/python"
        _stamp="$ROOT/.venv/complete-$(cksum <"$ROOT/requirements.txt" | tr ' ' '-')"
        if [ ! -f "$_stamp" ]; then
            command -v python3 >/dev/null || { echo "error: python3 is not on the PATH; install Python 3.9 or newer" >&2; exit 2; }
            python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || {
                echo "error: $(python3 --version) is too old; install Python 3.9 or newer, or set PYTHON=" >&2; exit 2; }
            echo "Setting up $ROOT/.venv (once; PyTorch is a large download)"
            python3 -m venv --clear "$ROOT/.venv"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check --upgrade pip
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt" || {
                echo "error: pip could not install $ROOT/requirements.txt; see its message above" >&2; exit 2; }
            : >"$_stamp"
        fi
    fi
fi
export PYTHON
