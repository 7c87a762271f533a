#!/usr/bin/env bash
# Evaluate a vision-language model's Hugging Face folder with lmms-eval, which tools/setup_lmms_environment.sh installs beside .venv.
#
#   examples/evaluate_vlm.sh HF_DIR [OUT]    # OUT: folder for results and answers (default: HF_DIR with -evaluation behind it)
#
# TASKS=a,b       tasks (default: digit_pictures, of this project, which needs no network); those of lmms-eval take their data
#                 from the hub
# DATA=DIR        of digit_pictures: a folder that write_digit_pictures wrote (default: runs/digit-pictures, made if missing)
# LIMIT=N         questions of each task (default: all)
# PROCESSES=N     share the questions out among N processes, one a GPU
# BATCH=N  DEVICE=cuda:0|cpu  DTYPE=bfloat16  TRUST_REMOTE_CODE=1 (models with code of their own)
# PYTHON=PATH     (default: .venv-lmms/bin/python, or python3)
# DRY_RUN=1       print the command instead of running it
#
# The paper's benchmarks and their tasks: docs/guides/evaluating-vision-language.md
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: examples/evaluate_vlm.sh HF_DIR [OUT]" >&2
    exit 2
fi
for file in config.json processor_config.json; do
    if [ ! -f "$1/$file" ]; then
        echo "error: $1 is no vision-language model's Hugging Face folder ($file is missing): export one with" \
            "megatron-compete convert --to hf" >&2
        exit 2
    fi
done
model=$(realpath "$1")
out=$(realpath -m "${2:-$model-evaluation}")
root=$(realpath "$(dirname "$0")/..")
python=${PYTHON:-$root/.venv-lmms/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
# Absolute, for it is started from another folder; a link stays one, as that of an environment must.
if found=$(command -v "$python"); then
    python=$(realpath -s "$found")
fi
tasks=${TASKS:-digit_pictures}
data=$(realpath -m "${DATA:-$root/runs/digit-pictures}")

arguments="pretrained=$model,dtype=${DTYPE:-auto}"
[ -z "${DEVICE:-}" ] || arguments+=",device=$DEVICE"
[ -z "${TRUST_REMOTE_CODE:-}" ] || arguments+=",trust_remote_code=True"
launcher=("$python")
[ "${PROCESSES:-1}" = 1 ] || launcher+=(-m accelerate.commands.launch --num_processes "$PROCESSES")
command=("${launcher[@]}" "$root/examples/lmms_exported.py" --model exported --model_args "$arguments" --tasks "$tasks"
    --include_path "$root/tests/evaluation/digit_pictures" --output_path "$out" --log_samples --batch_size "${BATCH:-8}")
[ -z "${LIMIT:-}" ] || command+=(--limit "$LIMIT")

if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
if ! "$python" -c "import lmms_eval, accelerate" 2>/dev/null; then
    echo "error: lmms-eval is not installed for $python: tools/setup_lmms_environment.sh" >&2
    exit 2
fi
# digit_pictures asks this package whether an answer is right; where that is installed, it needs no path.
[ ! -d "$root/megatron_compete" ] || export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [[ ",$tasks," == *,digit_pictures,* ]]; then
    if [ -n "${DATA:-}" ] && [ ! -f "$data/heldout.json" ]; then
        echo "error: DATA=$DATA has no heldout.json: name a folder that write_digit_pictures wrote, or leave DATA out" >&2
        exit 2
    fi
    if [ ! -f "$data/heldout.json" ]; then
        "$python" -c "
import sys
from megatron_compete.data.digit_pictures import write_digit_pictures

write_digit_pictures(sys.argv[1], train=0, heldout=1000)" "$data"
    fi
    cd "$data" # the task names its files from here
fi
started=$(mktemp)
trap 'rm -f "$started"' EXIT
"${command[@]}"
# lmms-eval logs what went wrong and ends with 0.
if [ -z "$(find "$out" -name '*_results.json' -newer "$started" 2>/dev/null)" ]; then
    echo "error: lmms-eval ended without results for $model: the reason is above" >&2
    exit 1
fi
