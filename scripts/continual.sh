#!/usr/bin/env bash
# Tune on one dataset after the other, each from the encoder of the last; after every task probe all tasks
# and the held-out datasets, and the table:
#   DATA=/path/to/datasets bash scripts/continual.sh METHOD ROW SEEDS [KEY VALUE ...]
# ROW: datasets in order, joined by commas, such as svhn,cifar10,resisc45. METHOD: as for finetune.sh, or a
# trainer of prompts such as CoOp, ProxyFDAMaPLe and CoOp+rkd, whose prompts go on to the next task.
# Environment or flags: as for finetune.sh; PROBES (--probes), the held-out ones; ANCHOR (--anchor),
# pretrained or previous; SHOTS (--shots), for prompts 16 without it.
# Without data: bash scripts/continual.sh ProxyFDA bundled 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" continual "$@"
