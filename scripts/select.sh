#!/usr/bin/env bash
# Choose settings without looking at new classes: the base classes are split in two, every setting is
# trained on the seen half and tested on both (validation images), the highest H is chosen and written
# to OUTPUT/select/DATASET/shots_K/TRAINER/choice.yaml, and base2new.sh is run with it:
#   DATA=/path/to/datasets bash scripts/select.sh TRAINER DATASET [SHOTS] [KEY VALUE ...]
# TRAINER and environment: as for base2new.sh; several datasets by commas; SEEDS (--seeds).
# What to choose from: --try KEY=V1,V2 (repeat it for a product), --regularisers rkd,fda,pointwise,
# --settings FILE.yaml; by default the grid of configs/select. --splits N, --shared (one choice for all
# datasets), --no-final, --evaluate-all, --dry-run, --workers N, --help. docs/selection.md has more.
# Without data: bash scripts/select.sh CoOp+rkd bundled
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" select "$@"
