#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment with torch alone, and runs the tests of the
# regularisers, of attach and of the plugin there.
#   bash scripts/check_wheel.sh [PYTHON]            # PYTHON: the interpreter of the fresh environment
#   TORCH=torch==1.13.1 bash scripts/check_wheel.sh /path/to/python3.8
# Environment: TORCH, what is installed as torch; FOLDER, where the environment is made and kept.
set -euo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-dev.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
target="${1:-python3}"
folder="${FOLDER:-$(mktemp -d)}"
[ -n "${FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/tests"

# From the files that git knows, so that nothing left over gets in.
mkdir -p "$folder/source"
git -C "$ROOT" ls-files -z --cached --others --exclude-standard -- proxyfda pyproject.toml MANIFEST.in \
    README.md LICENSE CHANGELOG.md CITATION.cff | (cd "$ROOT" && xargs -0 cp --parents -t "$folder/source")
"$PYTHON" -m build --wheel --outdir "$folder/dist" "$folder/source" >"$folder/build.log" 2>&1 ||
    { cat "$folder/build.log" >&2; exit 1; }

"$target" -m venv --clear "$folder/env"
python="$folder/env/bin/python"
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }
install "${TORCH:-torch}"
install --no-deps "$folder"/dist/*.whl
cd "$folder/tests"
"$python" - <<'PY'
import importlib.metadata, sys, torch, proxyfda
for name in proxyfda.__all__:
    getattr(proxyfda, name)
assert proxyfda.__version__ == importlib.metadata.version("proxyfda")
assert "site-packages" in proxyfda.__file__, proxyfda.__file__
print(f"proxyfda {proxyfda.__version__} on Python {sys.version.split()[0]}, torch {torch.__version__}:"
      f" all {len(proxyfda.__all__)} public names with torch alone")
PY

# The tests' own needs: a host on Dassl brings yacs, and some compare with NumPy. Tests that need the
# engine or more stay behind.
install pytest yacs numpy
more='proxyfda\.(dassl|engine|backbones|experiments|results)\b|dassl_hosts|random_clip|import(orskip\(")? ?datasets'
for part in neighbours regularisers anchors diagnostics integrations utils; do
    mkdir -p "tests/$part"
    for file in "$ROOT/tests/$part/"*.py; do
        grep -qE "$more" "$file" || cp "$file" "tests/$part"
    done
done
rm -f tests/integrations/test_install.py # of the repository
cp "$ROOT"/tests/{naive,operations,test_sampling}.py tests/
cat >pytest.ini <<'INI'
[pytest]
addopts = -q --import-mode=importlib -p no:cacheprovider
pythonpath = . tests
markers = slow
INI
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$python" -m pytest tests
