#!/usr/bin/env bash
# From a fresh clone to the table in less than ten minutes on two cores: a part of bundled.sh (one
# host, three datasets, two seeds), which says what can be set. Interrupt it when you like; the same
# command goes on.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export TRAINERS="${TRAINERS:-ZeroshotCLIP,CoOp,FDACoOp,ProxyFDACoOp,CoOp+rkd}"
export DATASETS="${DATASETS:-bundled_banners,bundled_creatures,bundled_fruits}"
export SEEDS="${SEEDS:-1,2}"
export OUTPUT="${OUTPUT:-$(dirname "$here")/output/quickstart}"
exec bash "$here/bundled.sh" "$@"
