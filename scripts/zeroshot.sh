#!/usr/bin/env bash
# Zero-shot CLIP on all classes of the 11 benchmarks, and the table (on base and new classes:
# base2new_all.sh ZeroshotCLIP):
#   DATA=/path/to/datasets bash scripts/zeroshot.sh [DATASET] [KEY VALUE ...]
# Environment or flags: as for base2new.sh; DATASETS (--datasets).
# Without data: DATASETS=bundled bash scripts/zeroshot.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" zeroshot "$@"
