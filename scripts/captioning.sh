#!/usr/bin/env bash
# Tune a captioner, image encoder and decoder, on one family of images, plain and with each regulariser;
# then CIDEr on all families and linear probes, three seeds, and the table:
#   bash scripts/captioning.sh                                          # bundled model and pictures, no downloads
#   MODEL=/path/to/blip DATA=/path/to/coco TUNE_ON=animal bash scripts/captioning.sh
# Environment or flags: METHODS (--methods), SEEDS (--seeds), LAMBDAS (--lambdas), TUNE_ON (--tune-on),
# EVALUATE_ON (--evaluate-on), OUTPUT (--output), ...; --dry-run, --help. Complete runs are skipped, an
# interrupted one goes on from its last epoch.
set -euo pipefail
REQUIREMENTS="${REQUIREMENTS:-requirements-captioning.txt}"
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/image_to_text.py" captioning "$@"
