#!/usr/bin/env bash
# Sets up what is missing, then checks style and types, builds the documentation, and runs the
# doctests, the examples, the notebooks and the tests; with arguments the tests alone, since these go
# to pytest.
set -euo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-dev.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
[ $# -eq 0 ] || exec "$PYTHON" -m pytest "$@"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest --doctest-modules proxyfda/{utils,neighbours,regularisers,anchors,diagnostics,integrations} \
    proxyfda/names.py scripts/docs_docstrings.py scripts/docs_hooks.py
site="$(mktemp -d)"
# Not --quiet: it silences warnings before --strict counts them.
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --site-dir "$site"
rm -rf "$site"
export OMP_NUM_THREADS=1 # what follows runs on every core
# Two at a time; what they print comes in one piece.
printf '%s\n' examples/[!_]*.py | xargs -P 2 -I {} bash -c '
    status=0; printed="$("$PYTHON" {} 2>&1)" || status=$?
    printf "== %s\n%s\n" {} "$printed"; exit $status'
"$PYTHON" -m pytest -n 2 --nbmake docs/notebooks
exec "$PYTHON" -m pytest -n auto --dist worksteal
