#!/usr/bin/env bash
# Train on all classes of ImageNet, test on the other ten benchmarks, and the table:
#   DATA=/path/to/datasets bash scripts/cross_dataset.sh TRAINER [SHOTS] [KEY VALUE ...]
# Environment or flags: as for base2new.sh; SOURCE (--source), TARGETS (--targets), SEEDS (--seeds).
# Without data: SOURCE=bundled_fruits bash scripts/cross_dataset.sh TRAINER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" cross_dataset "$@"
