#!/usr/bin/env bash
# Sets up what is missing, then checks style and types, builds the documentation, and runs the
# doctests, the examples and the tests; with arguments the tests alone, since these go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
if [ $# -eq 0 ]; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
    "$PYTHON" -m pytest --doctest-modules proxyfda/{utils,neighbours,regularisers,anchors,diagnostics,integrations} proxyfda/names.py
    "$PYTHON" -m pytest --doctest-modules scripts/docs_docstrings.py scripts/docs_hooks.py
    site="$(mktemp -d)"
    NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --strict --quiet --site-dir "$site"
    rm -rf "$site"
    for example in examples/*.py; do
        echo "== $example"
        "$PYTHON" "$example"
    done
fi
exec "$PYTHON" -m pytest "$@"
