#!/usr/bin/env bash
# Sets up what is missing, then checks style and types and runs the doctests, the examples and the
# tests; with arguments the tests alone, since these go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
    site="$(mktemp -d)" # the documentation builds, and every link in it leads somewhere
    NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet --site-dir "$site"
    rm -rf "$site"
    "$PYTHON" -m pytest --doctest-modules scripts/docs_docstrings.py scripts/docs_hooks.py
    "$PYTHON" -m pytest --doctest-modules proxyfda/{utils,neighbours,regularisers,anchors,diagnostics,integrations} proxyfda/names.py
    for example in examples/*.py; do
        echo "== $example"
        "$PYTHON" "$example"
    done
fi
exec "$PYTHON" -m pytest "$@"
