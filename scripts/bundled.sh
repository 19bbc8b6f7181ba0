#!/usr/bin/env bash
# Zero-shot CLIP and every host trainer, each plain, with FDA, with Proxy-FDA and with the rivals rkd
# and pointwise, on the bundled benchmark (the nine atlas datasets of docs/DATASETS.md) over three seeds
# (test splits), on the CPU; then table and figures.
#   bash scripts/bundled.sh [SHOTS] [KEY VALUE ...]
# Environment: TRAINERS (such as ZeroshotCLIP,CoOp,CoOp+rkd), DATASETS, SEEDS (joined by commas), DATA,
# OUTPUT, WORKERS; and as for base2new.sh.
# Interrupt it when you like; the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# Relative folders are the caller's, not the repository's.
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
DATA="$(absolute "${DATA:-$ROOT/data}")"
OUTPUT="$(absolute "${OUTPUT:-$ROOT/output/bundled}")"
cd "$ROOT"
"$PYTHON" scripts/run.py base2new "${TRAINERS:-all}" "${DATASETS:-bundled}" "${SEEDS:-1,2,3}" \
    --data "$DATA" --output "$OUTPUT" --workers "${WORKERS:-2}" "$@"
case " $* " in *" --dry-run "* | *" --help "* | *" -h "*) exit ;; esac
"$PYTHON" -m proxyfda.results.figures "$OUTPUT" --out "$OUTPUT/figures"
