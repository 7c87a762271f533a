#!/usr/bin/env bash
# Evaluate a Hugging Face folder with EleutherAI's lm-evaluation-harness (pip install 'megatron-compete[eval]').
#
#   examples/evaluate.sh HF_DIR [OUT]        # OUT: folder for the results (default: HF_DIR with -evaluation behind it)
#
# TASKS=a,b       tasks (default: those of the CompeteSMoE paper that the harness has; their data come from the hub)
# INCLUDE=DIR     folder with more tasks, such as tests/evaluation (license_words,license_text: no network needed)
# LIMIT=N         documents of each task (default: all)
# BATCH=N  DEVICE=cuda:0|cpu  DTYPE=bfloat16  TRUST_REMOTE_CODE=1 (models with code of their own)  PYTHON=python3
# DRY_RUN=1       print the command instead of running it
#
# The paper's Children's Book Test is no task of the harness.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: examples/evaluate.sh HF_DIR [OUT]" >&2
    exit 2
fi
if [ ! -f "$1/config.json" ]; then
    echo "error: $1 is not a Hugging Face folder (config.json is missing): export one with megatron-compete convert --to hf" >&2
    exit 2
fi
model=$(realpath "$1")
out=$(realpath -m "${2:-$model-evaluation}")
python=${PYTHON:-python3}
tasks=${TASKS:-lambada_openai,blimp,hellaswag,piqa,arc_easy,arc_challenge}

# The harness begins every text without context with the tokenizer's BOS. Documents that were trained on as Megatron
# cuts them have none: they follow the EOD of the one before, and BOS keeps the embedding it was initialised with. So
# where the tokenizer says that it adds no BOS, EOD goes before.
prefix=$("$python" - "$model" <<'PYTHON'
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
tokenizer, config = folder / "tokenizer_config.json", json.loads((folder / "config.json").read_text())
eos = config.get("eos_token_id")
eos = eos[0] if isinstance(eos, list) else eos
adds = json.loads(tokenizer.read_text()).get("add_bos_token") if tokenizer.is_file() else None
print("" if adds is not False else ",add_bos_token=False" + (f",prefix_token_id={eos}" if eos is not None else ""))
PYTHON
)

arguments="pretrained=$model,dtype=${DTYPE:-auto}$prefix"
command=("$python" -m lm_eval run --model hf --model_args "$arguments" --tasks "$tasks" --output_path "$out"
    --batch_size "${BATCH:-8}")
[ -z "${TRUST_REMOTE_CODE:-}" ] || command+=(--trust_remote_code)
[ -z "${INCLUDE:-}" ] || command+=(--include_path "$(realpath "$INCLUDE")")
[ -z "${LIMIT:-}" ] || command+=(--limit "$LIMIT")
[ -z "${DEVICE:-}" ] || command+=(--device "$DEVICE")

cd "$(dirname "$0")/.."  # tasks name their files from here
if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
if ! "$python" -c "import lm_eval, accelerate" 2>/dev/null; then
    echo "error: lm-evaluation-harness is not installed for $python: pip install 'megatron-compete[eval]'" >&2
    exit 2
fi
exec "${command[@]}"
