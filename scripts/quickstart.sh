#!/usr/bin/env bash
# From a fresh clone to the table: zero-shot CLIP, CoOp, CoOp with FDA and with Proxy-FDA on the
# bundled datasets over three seeds, on the CPU. Interrupt it when you like; the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
DATA="${DATA:-$ROOT/data}"
OUTPUT="${OUTPUT:-$ROOT/output/quickstart}"
"$PYTHON" -m datasets.bundled --root "$DATA"
"$PYTHON" scripts/jobs.py ZeroshotCLIP,CoOp,FDACoOp,ProxyFDACoOp bundled 1,2,3 \
    --data "$DATA" --output "$OUTPUT" --workers "${WORKERS:-2}" "$@"
"$PYTHON" -m proxyfda.results "$OUTPUT"
"$PYTHON" -m proxyfda.figures "$OUTPUT" --out "$OUTPUT/figures"
