#!/usr/bin/env bash
# From a fresh clone to the table: zero-shot CLIP, CoOp, CoOp with FDA and with Proxy-FDA on the
# bundled datasets over three seeds, on the CPU. Interrupt it when you like; the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Relative folders are the caller's, not the repository's.
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
DATA="$(absolute "${DATA:-$ROOT/data}")"
OUTPUT="$(absolute "${OUTPUT:-$ROOT/output/quickstart}")"
# Three of the four, to stay below ten minutes on two cores; DATASETS=bundled takes all.
DATASETS="${DATASETS:-bundled_banners,bundled_creatures,bundled_fruits}"
cd "$ROOT"
"$PYTHON" -m datasets.bundled --root "$DATA"
"$PYTHON" scripts/jobs.py ZeroshotCLIP,CoOp,FDACoOp,ProxyFDACoOp "$DATASETS" 1,2,3 \
    --data "$DATA" --output "$OUTPUT" --workers "${WORKERS:-2}" "$@"
"$PYTHON" -m proxyfda.results "$OUTPUT"
"$PYTHON" -m proxyfda.figures "$OUTPUT" --out "$OUTPUT/figures"
