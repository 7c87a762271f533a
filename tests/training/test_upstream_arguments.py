"""No argument of Megatron's is taken and ignored: what its own pretrain_gpt.py reads, this entry reads or refuses by name;
what decides about a model has a requirement where models are exported. `upstream/arguments.tsv` has every argument."""

import argparse
import ast
import inspect
import re
from pathlib import Path

import pytest
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.training.arguments import add_megatron_arguments
from megatron.training.datasets.fim_dataset import GPTFIMDatasetConfig

from megatron_compete.checkpoint import families
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.training import batches, data_arguments, datasets
from megatron_compete.training.arguments import add_arguments
from megatron_compete.training.refused import REFUSED, check_refused

LIST = Path(__file__).with_name("upstream") / "arguments.tsv"
ROWS = [line.split("\t") for line in LIST.read_text().splitlines() if not line.startswith("#")]
ENTRY = {name for name, read, _ in ROWS if read == "read"}
ON_MODELS = {name: model for name, _, model in ROWS}
BY_ANOTHER_WAY = {"overlap_moe_expert_parallel_comm"}
"""Megatron's schedule asks the forward step for a plan where it is given; upstream's entry only asserts that."""


def parser() -> argparse.ArgumentParser:
    return add_arguments(add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))


def upstream_arguments() -> set[str]:
    made = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return {action.dest for action in made._actions if action.dest != "help"}


def read_by(*modules: object) -> set[str]:
    """Attributes of `args` in the source of modules."""
    trees = [ast.parse(Path(inspect.getfile(module)).read_text()) for module in modules]  # type: ignore[arg-type]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }


def test_every_argument_was_looked_at() -> None:
    new, gone = upstream_arguments() - ON_MODELS.keys(), ON_MODELS.keys() - upstream_arguments()
    assert not new, f"does pretrain_gpt.py read them, and do they change a model? Write them into {LIST}: {sorted(new)}"
    assert not gone, f"Megatron has them no longer: {sorted(gone)}"


def test_what_upstreams_entry_reads_is_read_or_refused() -> None:
    ours = read_by(batches, datasets, data_arguments) | {one.argument for one in REFUSED} | BY_ANOTHER_WAY
    assert ENTRY - ours == set()
    assert "return_schedule_plan" in inspect.signature(batches.forward_step).parameters


def test_what_decides_about_a_model_has_a_requirement_or_is_exported() -> None:
    required = {rule.argument for family in families.FAMILIES.values() for rule in family.requirements}
    assert {name for name, model in ON_MODELS.items() if model == "required"} == required & ON_MODELS.keys()
    for name, model in ON_MODELS.items():
        if model.startswith("with "):
            assert model.removeprefix("with ") in required, name
    sources = "".join(path.read_text() for path in Path(inspect.getfile(families)).parents[1].rglob("*.py"))
    unread = {name for name, model in ON_MODELS.items() if model == "read" and f'"{name}"' not in sources}
    assert unread == set()


DATASET_FLAGS = {
    "allow_ambiguous_pad_tokens": "--allow-ambiguous-pad-tokens",
    "fast_cache_load": "--dataloader-fast-cache-load",
    "defer_npy_index_mmap": "--dataloader-defer-npy-index-mmap",
    "inter_document_masking": "--dataloader-inter-document-masking",
    "hybrid_context_parallel": "--hybrid-context-parallel",
    "reset_position_ids": "--reset-position-ids",
    "reset_attention_mask": "--reset-attention-mask",
    "eod_mask_loss": "--eod-mask-loss",
    "full_validation": "--full-validation",
    "multiple_validation_sets": "--multiple-validation-sets",
}


def config_of(flags: str, monkeypatch: pytest.MonkeyPatch) -> GPTDatasetConfig:
    monkeypatch.setattr(datasets, "get_tokenizer", lambda: argparse.Namespace(vocab_size=100))
    args = parser().parse_args(["--seq-length", "8", *flags.split()])
    args.data_parallel_size = 3
    return datasets.dataset_config(args, data_arguments.read_sources(args))


@pytest.mark.parametrize("name", DATASET_FLAGS)
def test_a_flag_of_the_data_arrives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "--train-data-path a --data-cache-path c"
    assert not getattr(config_of(base, monkeypatch), name)
    assert getattr(config_of(f"{base} {DATASET_FLAGS[name]}", monkeypatch), name) is True


def test_sizes_and_fill_in_the_middle_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(
        "--train-data-path a --fim-data --fim-rate 0.7 --fim-no-prefix x --tensor-model-parallel-size 2 --sequence-parallel "
        "--context-parallel-size 4 --fim-pad-token <p>",
        monkeypatch,
    )
    assert isinstance(config, GPTFIMDatasetConfig)
    assert (config.fim_rate, config.fim_no_prefix, config.fim_extra_tokens["pad"]) == (0.7, "x", "<p>")
    sizes = (config.sequence_parallel_size, config.context_parallel_size, config.data_parallel_size)
    assert sizes == (2, 4, 3)


CHOSEN = {"": "GPTDataset", "--mock-data": "MockGPTDataset", "--fim-data": "GPTFIMDataset", "--sft": "SFTDataset"}


@pytest.mark.parametrize("flag", CHOSEN)
def test_the_kind_of_dataset(flag: str) -> None:
    assert datasets._dataset_class(parser().parse_args(flag.split())).__name__ == CHOSEN[flag]


IGNORED = {
    "--rampup-batch-size 2 2 100": "--step-batch-size-schedule",
    "--inprocess-restart": "the job is tried again",
    "--async-save": "--use-persistent-ckpt-worker",
    "--sft --mock-data --no-create-attention-mask-in-dataloader": "--data-path",
    "--sft": "--no-create-attention-mask-in-dataloader",
    "--dataloader-inter-document-masking --transformer-impl local": "Transformer Engine",
    "--hybrid-context-parallel": "--sft",
    "--rerun-mode report_stats": "leave it out",
    "--spec a b": "--router",
    "--perform-rl-step": "train_rl.py",
    "--heterogeneous-layers-config-path x --num-experts 4": "all layers alike",
    "--hybrid-layer-pattern *E --moe-layer-freq 2": "the E of the pattern",
    "--hybrid-layer-pattern *E --linear-attention-freq 4": "the G of the pattern",
    "--disable-mamba-mem-eff-path": "no form for a CPU",
}


@pytest.mark.parametrize("flags", IGNORED)
def test_what_cannot_be_done_is_refused_by_name(flags: str) -> None:
    with pytest.raises(CompeteError, match=re.escape(IGNORED[flags])) as error:
        check_refused(parser().parse_args(flags.split()))
    assert flags.split()[0] in str(error.value)


@pytest.mark.parametrize("flags", ["--hybrid-layer-pattern *E", "--multi-latent-attention", "--experimental-attention-variant dsa"])  # fmt: skip
def test_local_modules_of_these_are_for_a_cpu(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local = parser().parse_args(f"{flags} --transformer-impl local".split())
    check_refused(local)
    monkeypatch.setattr(cpu, "is_needed", lambda: False)
    with pytest.raises(CompeteError, match="of Transformer Engine's modules alone") as error:
        check_refused(local)
    assert flags.split()[0] in str(error.value)


def test_defaults_are_not_refused() -> None:
    check_refused(parser().parse_args([]))
