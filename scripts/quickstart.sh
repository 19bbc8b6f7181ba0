#!/usr/bin/env bash
# From a fresh clone to the table, on two cores and without downloads of data or weights: a part of
# bundled.sh (one host, three of its datasets, two seeds), which says what can be set. Interrupt it when
# you like; the same command goes on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export TRAINERS="${TRAINERS:-ZeroshotCLIP,CoOp,CoOp+pointwise,FDACoOp,ProxyFDACoOp}"
export DATASETS="${DATASETS:-atlas_banners,atlas_creatures,atlas_fruits}"
export SEEDS="${SEEDS:-1,2}"
export OUTPUT="${OUTPUT:-$(dirname "$here")/output/quickstart}"
exec bash "$here/bundled.sh" "$@"
