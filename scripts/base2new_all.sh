#!/usr/bin/env bash
# base2new.sh on the 11 benchmarks with seeds 1, 2, 3, and the table:
#   DATA=/path/to/datasets bash scripts/base2new_all.sh TRAINER [SHOTS] [KEY VALUE ...]
# Environment or flags: as for base2new.sh; DATASETS (--datasets), SEEDS (--seeds).
# Without data: DATASETS=bundled bash scripts/base2new_all.sh TRAINER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" base2new_all "$@"
