#!/usr/bin/env bash
# Everything that one GPU can tell, unattended, in at most nine minutes:
#
#     bash benchmarks/gpu_suite.sh OUT
#
# Tests, then benchmarks, the most telling first, each with a time budget of its own. A part that fails leaves its log
# and the next goes on. OUT then holds summary.md, summary.json, a JSON file for each benchmark and logs.tar.gz. Without
# a GPU every part is marked as skipped, and the exit code is 0. It is 0 too when parts failed: the summary says so.
#
#     PYTHON=python3      the interpreter, which must find torch, megatron-core, Transformer Engine (docs/gpu.md)
#     SUITE_SECONDS=525   for all parts together
set -uo pipefail

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash benchmarks/gpu_suite.sh OUT" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
results=(scoring competition_step train_step train_step_fp8 fp8_curves summary)
for name in "${results[@]}"; do rm -f "$out/$name.json"; done  # an earlier run's numbers must not pass for this one's
python=$(command -v "${PYTHON:-python3}") || { echo "no interpreter ${PYTHON:-python3}: set PYTHON" >&2; exit 2; }
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
deadline=$((SECONDS + ${SUITE_SECONDS:-525}))
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/logs"
parts="$work/parts.tsv"
: >"$parts"

if ! "$python" -c 'import torch' 2>"$work/logs/torch.log"; then
    echo "$python cannot import torch: set PYTHON to an interpreter that can" >&2
    exit 2
fi
has_gpu=1
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || has_gpu=0
[ "$has_gpu" = 1 ] || echo "no CUDA device: every part is skipped"

summarise() {
    "$python" benchmarks/gpu_summary.py "$out" --parts "$parts" --environment "$work/environment.json" >/dev/null ||
        echo "the summary could not be written" >&2
    tar -C "$work" -czf "$out/logs.tar.gz" logs
}

# part NAME SECONDS COMMAND...: run it, no longer than its budget and the suite's; note what became of it.
# PART_SECONDS in the command becomes a little less than its time.
part() {
    local name=$1 budget=$2 left=$((deadline - SECONDS)) start=$SECONDS rc status
    shift 2
    if [ "$has_gpu" = 0 ]; then
        printf '%s\tskipped\t0\t0\tno CUDA device\n' "$name" >>"$parts"
        return
    fi
    [ "$budget" -le "$left" ] || budget=$left
    if [ "$budget" -lt 20 ]; then  # too little to import and build anything
        printf '%s\tskipped\t0\t0\tno time left\n' "$name" >>"$parts"
        return
    fi
    echo "$name: at most $budget s"
    timeout -k 5 "$budget" "${@/#PART_SECONDS/$((budget - 10))}" >"$work/logs/$name.log" 2>&1
    rc=$?
    status=ok
    [ "$rc" = 0 ] || status=failed
    [ "$rc" != 124 ] && [ "$rc" != 137 ] || status="out of time"
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" "$rc" "$(last_line "$work/logs/$name.log")" >>"$parts"
    echo "$name: $status after $((SECONDS - start)) s"
    summarise
}

last_line() {
    grep -v '^[[:space:]]*$' "$1" | tail -n 1 | tr -d '\t' | cut -c 1-200
}

"$python" benchmarks/environment.py --json "$work/environment.json" 2>"$work/logs/environment.log"
grouped=()
! "$python" -c 'import transformer_engine.pytorch' 2>/dev/null || grouped=(--grouped-gemm)

part tests 90 "$python" -m pytest -q -m gpu -p no:cacheprovider --timeout 60 --continue-on-collection-errors tests/moe
part train_step 130 "$python" benchmarks/train_step.py --json "$out/train_step.json"
part scoring 80 "$python" benchmarks/scoring.py --json "$out/scoring.json"
part competition_step 100 "$python" benchmarks/competition_step.py --suite models --repeats 9 "${grouped[@]}" --json "$out/competition_step.json"
part fp8_curves 130 "$python" benchmarks/fp8_curves.py --timeout PART_SECONDS --json "$out/fp8_curves.json" --figure "$work/logs/fp8_curves.png" --logs "$work/logs/fp8_curves"
part train_step_fp8 80 "$python" benchmarks/train_step.py --fp8 tensorwise --no-naive --json "$out/train_step_fp8.json"
summarise
echo "results: $out/summary.md"
