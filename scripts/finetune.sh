#!/usr/bin/env bash
# Tune an image encoder end to end, probe it before and after on other datasets, and the table:
#   DATA=/path/to/datasets bash scripts/finetune.sh METHOD DATASETS SEEDS [KEY VALUE ...]
# METHOD: naive, LP-FT, WiSE-FT, L2SP, LDIFS, RKD, FDA, Proxy-FDA (ProxyFDA), FLYP, FineTune+<regulariser>;
# several by commas, all: those of the paper's table.
# Environment or flags: DATA (--data), OUTPUT (--output), CFG (--cfg), PROBES (--probes), LAMBDAS
# (--lambdas; 3: this λ, 1,3,10: chosen by the rule of docs/finetune.md, grid: chosen from configs/finetune),
# ALPHAS (--alphas) of WiSE-FT; --dry-run, --workers N, --help.
# Complete parts are skipped, an interrupted one goes on from its last checkpoint.
# Without data: bash scripts/finetune.sh ProxyFDA bundled_fruits 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" finetune "$@"
