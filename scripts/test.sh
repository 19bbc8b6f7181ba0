#!/usr/bin/env bash
# Sets up what is missing, then checks style and types and runs the doctests, the examples, the
# notebooks and the tests; with arguments the tests alone, since these go to pytest.
set -euo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-dev.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
    "$PYTHON" -m pytest --doctest-modules proxyfda/{utils,neighbours,regularisers,anchors,diagnostics,integrations} proxyfda/names.py
    # Two at a time, each on one core; what they print comes in one piece.
    printf '%s\n' examples/[!_]*.py | OMP_NUM_THREADS=1 xargs -P 2 -I {} bash -c '
        status=0; printed="$("$PYTHON" {} 2>&1)" || status=$?
        printf "== %s\n%s\n" {} "$printed"; exit $status'
    OMP_NUM_THREADS=1 "$PYTHON" -m pytest --nbmake docs/notebooks
fi
exec "$PYTHON" -m pytest "$@"
