#!/usr/bin/env bash
# Train on all classes of ImageNet (as cross_dataset.sh, once for both), test on ImageNetV2, -Sketch,
# -A and -R, and the table:
#   DATA=/path/to/datasets bash scripts/domain_generalization.sh TRAINER [SHOTS] [KEY VALUE ...]
# Environment or flags: as for base2new.sh; SOURCE (--source), TARGETS (--targets), SEEDS (--seeds).
# Without data: SOURCE=bundled_fruits bash scripts/domain_generalization.sh TRAINER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" domain_generalization "$@"
