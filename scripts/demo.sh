#!/usr/bin/env bash
# Sets up (scripts/setup.sh), then runs `blockzo demo`: SmolLM2-135M learns to sort questions, forward passes only, some minutes on two cores.
# Arguments go to `blockzo finetune` and win over the demonstration's: scripts/demo.sh --seed 1 --output runs/second
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# idle threads sleep: on a busy machine a spinning pool is many times slower
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec "${BLOCKZO_VENV:-.venv}/bin/blockzo" demo "$@"
