#!/usr/bin/env python3
"""The whole way, on this machine's CPUs: raw text to a Hugging Face folder, in a few minutes.

Corpus (the standard library's own sources) -> tokenizer -> Megatron dataset -> training on 4 ranks with competition
routing, stopped and resumed half-way -> export -> comparison with Megatron -> the run's report -> an audit of the export ->
a generated sample. Every step is the command that a user would type; their output is in runs/demo/logs. `make demo` runs this.
"""

import json
import os
import shutil
import sys
import time

from rich.table import Table
from steps import ROOT, Run, console, run

from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.data.stdlib_corpus import write_stdlib_corpus
from megatron_compete.report.scalars import Scalars, read_scalars

FOLDERS = ("corpus", "tokenizer", "data", "checkpoints", "tensorboard", "hf", "logs")
RECIPE = ROOT / "examples" / "demo.yaml"
ACTIVE, AGREEMENT = "competition/active-layers", "competition/agreement"
VOCAB_SIZE, STEPS, A_MAX = 2048, 240, 2
MIDDLE = STEPS // 2
PROMPT = "def __init__(self, name"


def prepare_data(demo: Run) -> None:
    """Corpus, tokenizer and the .bin/.idx pair."""
    corpus = write_stdlib_corpus(str(demo.corpus))
    console.print(
        f"[bold]corpus[/bold]  the standard library's sources: {corpus.train_documents} modules, "
        f"{corpus.train_bytes / 1e6:.1f} MB, and {corpus.heldout_documents} held out"
    )
    python = sys.executable
    run("train the tokenizer", [
        python, "-m", "megatron_compete", "tokenizer", "--input", f"{demo.corpus}/train.jsonl",
        "--output-prefix", f"{demo.tokenizer}/tokenizer", "--vocab-size", str(VOCAB_SIZE),
        "--sample-bytes", "4000000",
    ], demo.logs / "1-tokenizer.log")  # fmt: skip
    run("preprocess", [
        python, "-m", "megatron_compete", "preprocess", "--input", f"{demo.corpus}/train.jsonl",
        "--output-prefix", f"{demo.data}/stdlib", "--tokenizer-type", "SentencePieceTokenizer",
        "--tokenizer-model", f"{demo.tokenizer}/tokenizer.model", "--append-eod", "--workers", "2",
    ], demo.logs / "2-preprocess.log")  # fmt: skip


def pretrain(demo: Run) -> None:
    """Train to the middle, stop, and resume from the checkpoint."""
    command = [
        sys.executable, "-m", "megatron_compete", "pretrain", "--recipe", str(RECIPE),
        "--train-iters", str(STEPS), "--compete-max-active-layers", str(A_MAX), "--save-interval", str(MIDDLE),
        "--data-path", f"{demo.data}/stdlib_text_document", "--data-cache-path", f"{demo.data}/cache",
        "--tokenizer-model", f"{demo.tokenizer}/tokenizer.model", "--save", str(demo.checkpoints),
        "--load", str(demo.checkpoints), "--tensorboard-dir", str(demo.tensorboard),
        "--moe-per-layer-logging", "--log-throughput", "--log-timers-to-tensorboard",  # for the report
    ]  # fmt: skip
    run("pretrain on 4 ranks, first half", [*command, "--exit-interval", str(MIDDLE)], demo.logs / "3-pretrain.log")
    run("resume from the checkpoint", command, demo.logs / "4-resume.log")


def export(demo: Run) -> dict[str, float]:
    """Hugging Face folder, and how it compares with the Megatron model on held-out text."""
    checkpoint = ["--checkpoint", str(demo.checkpoints)]
    run("export to Hugging Face", [
        sys.executable, "-m", "megatron_compete", "convert", "--to", "hf", *checkpoint, "--output", str(demo.hf),
        "--verify-text", f"{demo.corpus}/heldout.jsonl",
    ], demo.logs / "5-export.log")  # fmt: skip
    run("compare Megatron and Hugging Face", [
        sys.executable, "-m", "megatron_compete", "verify", *checkpoint, "--hf", str(demo.hf),
        "--text", f"{demo.corpus}/heldout.jsonl", "--json", f"{demo.folder}/comparison.json",
    ], demo.logs / "6-compare.log")  # fmt: skip
    return json.loads((demo.folder / "comparison.json").read_text())


def write_report(demo: Run) -> None:
    """The run's page."""
    run("report", [
        sys.executable, "-m", "megatron_compete", "report", str(demo.folder),
    ], demo.logs / "7-report.log")  # fmt: skip


def audit(demo: Run) -> None:
    """What the exported model's routers and experts do on held-out text."""
    run("audit", [
        sys.executable, "-m", "megatron_compete", "audit", str(demo.hf), "--text", f"{demo.corpus}/heldout.jsonl",
        "--out", f"{demo.folder}/audit", "--tokens", "32768", "--competition-tokens", "4096", "--regret-tokens", "4096",
    ], demo.logs / "8-audit.log")  # fmt: skip


def generate(demo: Run) -> str:
    """A sample from the exported model, through transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(demo.hf), AutoModelForCausalLM.from_pretrained(demo.hf)
    torch.manual_seed(1)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=True, temperature=0.7, top_k=20)  # fmt: skip
    return tokenizer.decode(output[0], skip_special_tokens=True)


def check(comparison: dict[str, float], scalars: Scalars) -> None:
    """What the demo promises."""
    active = scalars[ACTIVE]
    promises = {
        "both halves trained": sorted(active) == list(range(1, STEPS + 1)),
        f"never more than {A_MAX} layers compete": max(active.values()) <= A_MAX,
        "steps with and without competition": min(active.values()) == 0 < max(active.values()),
        "perplexity below a tenth of the untrained model's": comparison["perplexity_hf"] < comparison["perplexity_untrained"] / 10,
        "logits within 1e-3": comparison["max_logit_difference"] < 1e-3,
        "same token ids": bool(comparison["same_ids"]),
    }  # fmt: skip
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise CompeteError(f"the demo ran, but did not show: {', '.join(broken)}")


def summarise(demo: Run, comparison: dict[str, float], scalars: Scalars, sample: str, seconds: float) -> None:
    """The table at the end."""
    active, agreement = list(scalars[ACTIVE].values()), list(scalars[AGREEMENT].values())
    recent = agreement[-20:]
    table = Table(title="CompeteSMoE demo", title_justify="left", show_header=False)
    for name, value in {
        "vocabulary": str(comparison["vocab_size"]),
        "held-out perplexity, untrained": f"{comparison['perplexity_untrained']:.0f}",
        "held-out perplexity, trained": f"{comparison['perplexity_hf']:.1f}",
        "largest logit difference to Megatron": f"{comparison['max_logit_difference']:.1e}",
        "steps with competing layers": f"{sum(a > 0 for a in active)} of {len(active)} (at most {max(active):.0f} layers, A_max {A_MAX})",
        "router agrees with competition": f"{sum(agreement[:20]) / 20:.2f} at first, {sum(recent) / len(recent):.2f} at the end",
        "seconds": f"{seconds:.0f}",
        **{name: str(getattr(demo, name).relative_to(ROOT)) for name in ("corpus", "tokenizer", "data", "checkpoints", "tensorboard", "hf")},
        "report": str((demo.folder / "report.html").relative_to(ROOT)),
        "audit": str((demo.folder / "audit" / "audit.html").relative_to(ROOT)),
    }.items():  # fmt: skip
        table.add_row(name, value)
    console.print("\n[bold]a sample[/bold]")
    console.print(sample, markup=False)
    console.print(table)


def main() -> None:
    """Run the demo from scratch into runs/demo."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    began = time.monotonic()
    demo = Run(ROOT / "runs" / "demo", FOLDERS)
    shutil.rmtree(demo.folder, ignore_errors=True)
    for folder in (demo.corpus, demo.tokenizer, demo.data, demo.logs):
        folder.mkdir(parents=True)
    prepare_data(demo)
    pretrain(demo)
    comparison = export(demo)
    scalars = read_scalars(demo.tensorboard)
    write_report(demo)
    audit(demo)
    sample = generate(demo)
    summarise(demo, comparison, scalars, sample, time.monotonic() - began)
    check(comparison, scalars)


if __name__ == "__main__":
    run_command(main)
