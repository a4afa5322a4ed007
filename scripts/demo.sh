#!/usr/bin/env bash
# Sets up (scripts/setup.sh), then fine-tunes SmolLM2-135M on SST-2 with forward passes only, on the CPU: some minutes on two cores.
# Arguments go to `blockzo finetune` and win over the settings below: scripts/demo.sh --seed 1 --output runs/second
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# idle threads sleep: on a busy machine a spinning pool is many times slower
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec "${BLOCKZO_VENV:-.venv}/bin/blockzo" finetune \
    --model smollm2-135m --fallback-model stories15m --task sst2 --output runs/demo \
    --trainable '*norm*' --method spzo --variant decoupled --split head --outer 1 --inner 64 \
    --lr 1e-4,0.7 --eps 1e-2 --schedule linear --batch 16 --steps 60 --eval-every 20 --eval-rows 128 "$@"
