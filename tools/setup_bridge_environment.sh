#!/usr/bin/env bash
# Create .venv-bridge: Megatron-Bridge's real wheel over .venv, whose other packages (torch, Megatron-Core) it sees.
# `make test-bridge` runs it; again is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-bridge requirements=tests/bridge/requirements.txt what="Megatron-Bridge (less than a minute)"
source tools/environment_over_venv.sh
# Imported by name alone here. Its wheels ask for a newer C library than some hosts have, for parts that are not loaded.
"${install[@]}" --target "$packages" --only-binary=:all: --platform "manylinux_2_39_$(uname -m)" nvidia-resiliency-ext==0.7.0
printf '%s\n' "$wanted" >"$mark"
