#!/usr/bin/env bash
# Everything that one GPU can tell, unattended, in at most nine minutes:
#
#     bash benchmarks/gpu_suite.sh OUT
#     bash benchmarks/gpu_suite.sh --quick OUT      # two minutes: does anything fail?
#
# What the rest builds on, tests, then benchmarks, the most telling first, each with a time budget of its own. A part that
# fails leaves its log and the next goes on. OUT then holds summary.md, summary.json, a JSON file for each benchmark and
# logs.tar.gz, in which the tiles' times are too. --quick has small sizes, and leaves summary and logs alone. Without a
# GPU every part is marked as skipped, and the exit code is 0. It is 0 too when parts failed: the summary says so.
#
#     PYTHON=python3      the interpreter, which must find torch, megatron-core, Transformer Engine (docs/operations/gpu-first-run.md)
#     SUITE_SECONDS=525   for all parts together (--quick: 150)
set -uo pipefail

quick=0
if [ "${1-}" = --quick ]; then
    quick=1
    shift
fi
if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash benchmarks/gpu_suite.sh [--quick] OUT" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
results=(scoring competition_step train_step train_step_fp8 fp8_curves summary)
for name in "${results[@]}"; do rm -f "$out/$name.json"; done  # an earlier run's numbers must not pass for this one's
python=$(command -v "${PYTHON:-python3}") || { echo "no interpreter ${PYTHON:-python3}: set PYTHON" >&2; exit 2; }
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
seconds=525
[ "$quick" = 0 ] || seconds=150
deadline=$((SECONDS + ${SUITE_SECONDS:-$seconds}))
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore PYTHONUNBUFFERED=1
export NVTE_FRAMEWORK=pytorch  # a broken extension of Transformer Engine is an error and no warning; JAX's is not asked for
# All ranks are alone: a host without a network, or with an odd name, is no obstacle.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/logs"
parts="$work/parts.tsv"
: >"$parts"

if ! timeout 120 "$python" -c 'import torch' 2>"$work/logs/torch.log"; then
    echo "$python cannot import torch: set PYTHON to an interpreter that can" >&2
    exit 2
fi
has_gpu=1
timeout 120 "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || has_gpu=0
[ "$has_gpu" = 1 ] || echo "no CUDA device: every part is skipped"

summarise() {
    timeout 30 "$python" benchmarks/gpu_summary.py "$out" --parts "$parts" --environment "$work/environment.json" >/dev/null ||
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
    echo "$name: $status after $((SECONDS - start)) s: $(last_line "$work/logs/$name.log")"
    [ "$status" = ok ] || grep -E 'Error|FAILED' "$work/logs/$name.log" | cut -c 1-300 | tail -n 12
    summarise
}

last_line() {
    grep -v '^[[:space:]]*$' "$1" | tail -n 1 | tr -d '\t' | cut -c 1-200
}

timeout -k 5 60 "$python" benchmarks/environment.py --json "$work/environment.json" --seconds 40 >"$work/logs/environment.log" 2>&1
grouped=()
if timeout 60 "$python" -c 'import torch, transformer_engine.pytorch' 2>"$work/logs/transformer_engine.log"; then
    grouped=(--grouped-gemm)
else
    echo "Transformer Engine does not import: $(last_line "$work/logs/transformer_engine.log")"
fi
# pytest-xdist, where it is: what takes time is the compiling of kernels, on one core each.
workers=()
if "$python" -c 'import xdist' 2>/dev/null; then
    cores=$(nproc)
    workers=(-n "$((cores < 8 ? cores : 8))")
fi
pytest=(-m pytest -q -rf --tb short -m gpu -p no:cacheprovider --timeout 60 --continue-on-collection-errors "${workers[@]}")
# In fp32 Transformer Engine multiplies in TF32, and a comparison in fp32 would be one of TF32's roundings.
exact=(env NVIDIA_TF32_OVERRIDE=0)

if [ "$quick" = 1 ]; then
    part smoke 60 "${exact[@]}" "$python" benchmarks/gpu_smoke.py
    part tests 40 "$python" "${pytest[@]}" tests/moe -k 'H136 or tensorwise'
    part scoring 30 "$python" benchmarks/scoring.py --shape 154m --rounds 3 --seconds PART_SECONDS --json "$work/logs/scoring.json"
    part train_step 60 "$python" benchmarks/train_step.py --rounds 1 --no-naive --json "$work/logs/train_step.json" -- --num-layers 4
    summarise
    echo "results: $out/summary.md"
    exit 0
fi

part smoke 60 "${exact[@]}" "$python" benchmarks/gpu_smoke.py
part train_step 110 "$python" benchmarks/train_step.py --seconds PART_SECONDS --json "$out/train_step.json"
part scoring 70 "$python" benchmarks/scoring.py --seconds PART_SECONDS --json "$out/scoring.json"
part tests 110 "$python" "${pytest[@]}" tests/moe
part competition_step 90 "${exact[@]}" "$python" benchmarks/competition_step.py --suite models --repeats 9 "${grouped[@]}" --json "$out/competition_step.json"
part fp8_curves 120 "$python" benchmarks/fp8_curves.py --timeout PART_SECONDS --json "$out/fp8_curves.json" --figure "$work/logs/fp8_curves.png" --logs "$work/logs/fp8_curves"
part train_step_fp8 80 "$python" benchmarks/train_step.py --fp8 tensorwise --no-naive --seconds PART_SECONDS --json "$out/train_step_fp8.json"
part tiles 90 "$python" benchmarks/scoring.py --tune --rounds 5 --seconds PART_SECONDS --json "$work/logs/tiles.json"
summarise
echo "results: $out/summary.md"
