#!/usr/bin/env bash
# Train and test on all classes with 1, 2, 4, 8 and 16 images of each, and the table:
#   DATA=/path/to/datasets bash scripts/fewshot.sh TRAINER [DATASET] [SHOTS] [KEY VALUE ...]
# Environment or flags: as for base2new.sh; DATASETS (--datasets), SEEDS (--seeds), SHOTS (--shots).
# Without data: DATASETS=bundled bash scripts/fewshot.sh TRAINER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" fewshot "$@"
