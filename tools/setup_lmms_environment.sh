#!/usr/bin/env bash
# Create .venv-lmms: lmms-eval over .venv, whose other packages (torch, transformers) it sees, for examples/evaluate_vlm.sh.
# `make test-lmms` runs it; again is quick.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-lmms requirements=tools/lmms_requirements.txt what="lmms-eval (seconds)"
source tools/environment_over_venv.sh
printf '%s\n' "$wanted" >"$mark"
