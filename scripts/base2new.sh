#!/usr/bin/env bash
# Train on the base classes, test on base and on new ones:
#   DATA=/path/to/datasets bash scripts/base2new.sh TRAINER DATASET SEED [SHOTS] [KEY VALUE ...]
# and the table of base, new and H over all seeds that were run so far.
# TRAINER: CoOp, FDACoOp, ProxyFDACoOp, or CoOp+rkd with any other regulariser; several by commas.
# Environment or flags: DATA (--data), OUTPUT (--output), CFG (--cfg), REGULARISER (--regulariser),
# OVERLAY (--overlay); --dry-run, --workers N, --help.
# Complete parts are skipped, an interrupted one goes on from its last checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" base2new "$@"
