#!/usr/bin/env bash
# Tune a model that answers questions about images on one family of them, plain and with each regulariser;
# then VQA accuracy on all families and linear probes, three seeds, and the table:
#   bash scripts/vqa.sh                                                 # bundled model and pictures, no downloads
#   MODEL=/path/to/blip-vqa DATA=/path/to/vqav2 TUNE_ON=number bash scripts/vqa.sh
# Environment or flags: METHODS (--methods), SEEDS (--seeds), LAMBDAS (--lambdas), TUNE_ON (--tune-on),
# EVALUATE_ON (--evaluate-on), OUTPUT (--output), ...; --dry-run, --help. Complete runs are skipped, an
# interrupted one goes on from its last epoch.
set -euo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-captioning.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/image_to_text.py" vqa "$@"
