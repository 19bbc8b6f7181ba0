#!/usr/bin/env bash
# Check everything on this machine's GPUs in ten minutes and without downloads; a report in one file:
#   bash scripts/verify_gpu.sh [--only SECTION,...] [--output REPORT.md]
# The last line counts the checks; the exit code is 1 if one failed. docs/speed.md says what is checked.
# Without a GPU, to see that the checks themselves work: bash scripts/verify_gpu.sh --device cpu
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/verify_gpu.py" "$@"
