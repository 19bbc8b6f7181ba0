#!/usr/bin/env bash
# The paper's table on this machine: zero-shot CLIP, CoOp and PromptSRC, each plain, with FDA and with
# Proxy-FDA, on the 11 benchmarks with three seeds, and our figures beside the published ones with a
# verdict per cell. The settings of FDA and Proxy-FDA are chosen by select.sh, without new classes:
#   DATA=/path/to/datasets bash scripts/reproduce.sh [TRAINERS] [SHOTS] [KEY VALUE ...]
# --estimate says first what it costs (from steps measured here, or --seconds-per-step S), --no-select
# leaves the choice out and takes the defaults, --dry-run, --help. Environment and flags otherwise as for
# base2new_all.sh. A choice that is there already is kept, complete runs are skipped: the same command
# goes on after an interruption.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/run.py" reproduce "$@"
