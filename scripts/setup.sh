# Sourced by the other scripts: finds a Python that has what a requirements file names, or makes one.
#
# PYTHON=/path/to/python chooses one by hand. Otherwise: the active environment if it has everything,
# else .venv in the repository, which is made on the first call (again, if that was interrupted).
# REQUIREMENTS names the file, in the repository; requirements.txt without it.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_REQUIREMENTS="$ROOT/${REQUIREMENTS:-requirements.txt}"

# The lines of a requirements file and of those that it takes in by -r.
_requirement_lines() {
    local line
    while IFS= read -r line || [ -n "$line" ]; do
        case "$line" in
            -r\ *) _requirement_lines "$(dirname "$1")/${line#-r }" ;;
            *) printf '%s\n' "$line" ;;
        esac
    done <"$1"
}

_has_requirements() {
    _requirement_lines "$_REQUIREMENTS" | "$1" -c '
import re, sys
from importlib.metadata import version
assert sys.version_info >= (3, 9)
for line in sys.stdin:
    name = re.split(r"[\[<>=!~;\s#]", line.strip())[0]
    if name:
        version(name)
' 2>/dev/null
}

# --help: what the script says of itself. Scripts that hand over to a program in Python go on, to its
# list of options, and only where nothing has to be set up for that.
_helps=
case " $* " in
    *" --help "* | *" -h "*)
        _helps=yes
        sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
        grep -q 'exec "$PYTHON" "$ROOT/scripts/\|scripts/run\.py' "$0" || exit 0
        ;;
esac

if [ -z "${PYTHON:-}" ]; then
    if command -v python3 >/dev/null && _has_requirements python3; then
        PYTHON="$(command -v python3)"
    else
        PYTHON="$ROOT/.venv/bin/python"
        _stamp="$ROOT/.venv/complete-$(_requirement_lines "$_REQUIREMENTS" | cksum | tr ' ' '-')"
        # What was set up for a longer list serves a shorter one.
        if [ ! -f "$_stamp" ] && ! { compgen -G "$ROOT/.venv/complete-*" >/dev/null && _has_requirements "$PYTHON"; }; then
            if [ -n "$_helps" ]; then
                echo "(without --help the Python environment is set up; then --help also lists all options)"
                exit 0
            fi
            command -v python3 >/dev/null || { echo "error: python3 is not on the PATH; install Python 3.9 or newer" >&2; exit 2; }
            python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || {
                echo "error: $(python3 --version) is too old; install Python 3.9 or newer, or set PYTHON=" >&2; exit 2; }
            echo "Setting up $ROOT/.venv (once; PyTorch is a large download)"
            python3 -m venv --clear "$ROOT/.venv"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check --upgrade pip
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$_REQUIREMENTS" || {
                echo "error: pip could not install $_REQUIREMENTS; see its message above" >&2; exit 2; }
            : >"$_stamp"
        fi
    fi
fi
export PYTHON
