#!/usr/bin/env bash
# Every fault of tests/faults: kills at each file operation, signals, full and read-only disks, two
# sweeps at once, bad inputs. Arguments go to pytest (-k kill, -x, -n 8); the last line says how many were
# survived.
set -uo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-dev.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
export OMP_NUM_THREADS=1
report="$(mktemp)"
trap 'rm -f "$report"' EXIT
"$PYTHON" -m pytest tests/faults --long --junit-xml "$report" -n 2 --dist worksteal "$@"
status=$?
"$PYTHON" - "$report" "$status" <<'PYTHON'
import sys
import xml.etree.ElementTree as tree

status = int(sys.argv[2])
try:
    suite = next(tree.parse(sys.argv[1]).iter("testsuite"))
except (OSError, tree.ParseError, StopIteration):
    sys.exit(f"survived 0 of 0 (pytest ended with {status})")
count = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
run = count["tests"] - count["skipped"]
survived = run - count["failures"] - count["errors"]
print(f"survived {survived} of {run}", flush=True)
sys.exit(0 if survived == run and run and status == 0 else 1)
PYTHON
