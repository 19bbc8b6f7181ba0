#!/usr/bin/env bash
# The paper's first table: every method tuned end to end on every dataset with three seeds, probed on all
# others before and after, λ and α chosen on validation images by one rule (docs/finetune.md):
#   DATA=/path/to/datasets bash scripts/forgetting.sh [KEY VALUE ...]
# Environment or flags: as for finetune.sh; METHODS (--methods), DATASETS (--datasets), SEEDS (--seeds),
# PROBES (--probes), SELECT_SEEDS (--select-seeds). Interrupt it when you like; the same command goes on.
# Without data: DATASETS=bundled bash scripts/forgetting.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" forgetting "$@"
