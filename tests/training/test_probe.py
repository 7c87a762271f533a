"""The probe: it changes nothing, reads the same text each time, goes on after a resume, and says what it cannot do."""

import argparse
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.transformer.moe.router import TopKRouter

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.routing.rule import RouterRule
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.training.probe import RouterStatistics, read_sequences, routers_of
from megatron_compete.training.probe_log import ProbeLog, check_probe_arguments
from tests.data.datasets import write_dataset
from tests.ranks import run_ranks
from tests.training.runs import MODEL, losses, train, train_on_rank

ROOT = Path(__file__).resolve().parents[2]
STEPS, LAYERS, EXPERTS, TOKENS = 6, 4, 4, 8 * 32


SEQUENCES, LENGTH, HIDDEN, FFN, VOCABULARY, WINNERS = 8, 32, 32, 48, 128, 2
ATTENTION = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * LENGTH / 2
"""Multiply-adds of a token: projections, and scores and values of the half of the sequence that it may see."""
TOKEN = LAYERS * (ATTENTION + WINNERS * 3 * HIDDEN * FFN) + HIDDEN * VOCABULARY
FLOPS = 2 * 3 * SEQUENCES * LENGTH * TOKEN
"""Of a step by hand: 2 operations, a forward pass and twice that backward."""
EXPERT_PASS = 2 * SEQUENCES * LENGTH * EXPERTS * 3 * HIDDEN * FFN
"""All experts of a layer on all tokens."""


def scoring(steps: int) -> float:
    """Operations of the scoring passes of the first steps of `MODEL`."""
    schedule = CompetitionSchedule.of(CompeteConfig(rate=0.4, max_active_layers=2), ((0, 0),) * LAYERS)
    return float(EXPERT_PASS * schedule.table(0, steps).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    ids = np.random.default_rng(1).integers(0, 127, 5000).tolist()
    write_dataset(folder / "heldout", [[ids[:3000]], [ids[3000:]]])
    return folder


def flags(folder: Path, name: str) -> str:
    return f"--probe-log {folder}/{name}.jsonl --probe-data {folder}/heldout --probe-sequences 8 --probe-interval 2"


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def probed(folder: Path) -> Path:
    """A run with probes and a checkpoint after 4 steps."""
    more = f"--save {folder}/ckpt --save-interval 4 --tensorboard-dir {folder}/probed"
    train(1, f"--train-iters {STEPS} {more} {flags(folder, 'probed')}")
    return folder


def test_probing_changes_no_bit(probed: Path) -> None:
    train(1, f"--train-iters {STEPS} --tensorboard-dir {probed}/plain")
    assert losses(probed / "probed") == losses(probed / "plain") != {}


def test_what_a_line_says(probed: Path) -> None:
    found = lines(probed, "probed")
    assert [line["step"] for line in found] == [0, 2, 4, 6]
    assert [line["tokens"] for line in found] == [step * 8 * 32 for step in (0, 2, 4, 6)]
    for line in found:
        assert [sum(load_E) for load_E in line["load"]] == [2 * TOKENS] * LAYERS
        assert len(line["entropy"]) == len(line["margin"]) == len(line["coactivation"]) == LAYERS
        assert all(0 < entropy <= np.log(EXPERTS) for entropy in line["entropy"])
        assert line["choices_shape"] == [LAYERS, TOKENS, EXPERTS]
    assert found[0]["loss"] == pytest.approx(np.log(127), abs=0.3)  # untrained; the text is random
    assert len({line["loss"] for line in found}) == len(found)
    assert [line["flops"] for line in found] == [step * FLOPS + scoring(step) for step in (0, 2, 4, 6)]
    seconds = [line["processor_seconds"] for line in found]
    assert seconds == sorted(seconds) and seconds[0] == 0.0 < seconds[1]


def test_a_resumed_run_goes_on_in_the_file(probed: Path) -> None:
    whole = lines(probed, "probed")
    (probed / "ckpt/latest_checkpointed_iteration.txt").write_text("4")
    (probed / "resumed.jsonl").write_bytes((probed / "probed.jsonl").read_bytes())
    train(1, f"--train-iters {STEPS} --load {probed}/ckpt {flags(probed, 'resumed')}")
    again = lines(probed, "resumed")
    assert again[:3] == whole[:3]
    for line in (again[3], whole[3]):
        assert line.pop("processor_seconds") > whole[2]["processor_seconds"]
        del line["wall_seconds"]
    assert again[3:] == whole[3:]


def test_experts_on_two_ranks_answer_the_same(probed: Path) -> None:
    load = f"--load {probed}/ckpt --no-load-optim --finetune"
    train(1, f"{load} --train-iters 1 {flags(probed, 'one')}")
    train(2, f"{load} --expert-model-parallel-size 2 --train-iters 1 {flags(probed, 'two')}")
    assert [line["flops"] for line in lines(probed, "one")] == [line["flops"] for line in lines(probed, "two")]
    one, two = (lines(probed, name)[0] for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    assert one["load"] == two["load"] and one["choices"] == two["choices"]


def test_a_line_of_hash_routing_has_loads_and_a_choice_that_stays(folder: Path) -> None:
    train(1, f"--router hash --train-iters 2 {flags(folder, 'hash')}")
    first, last = lines(folder, "hash")
    assert not {"entropy", "margin"} & (first.keys() | last.keys())
    assert first["choices"] == last["choices"] and first["load"] == last["load"]
    assert [sum(load_E) for load_E in last["load"]] == [2 * TOKENS] * LAYERS
    assert last["loss"] != first["loss"] and last["flops"] == 2 * FLOPS


UTILITY = "--compete-kind utility --compete-rate 1 --compete-max-active-layers 4 --compete-diversity-coeff 0 --compete-distill-coeff 0"


@pytest.mark.parametrize(
    ("name", "settings", "scored"),
    [
        ("topk", "--router topk", 0.0),
        ("utility", UTILITY, 1.0),
        ("sampled", f"{UTILITY} --compete-token-fraction 0.5", 0.5),
    ],
)
def test_operations_are_those_of_the_formula(folder: Path, name: str, settings: str, scored: float) -> None:
    train(1, f"{settings} --train-iters 2 {flags(folder, name)}")
    found = [line["flops"] for line in lines(folder, name)]
    assert found == [0.0, 2 * (FLOPS + scored * LAYERS * EXPERT_PASS)]


def test_a_dense_model_trains_and_its_mixture_begins_where_it_ends(folder: Path) -> None:
    dense = MODEL.replace("--num-experts 4 --moe-router-topk 2", "").replace("--moe-ffn-hidden-size 48", "")
    dense = dense.replace("--moe-token-dispatcher-type alltoall", "")
    more = f"--router topk --train-iters 2 --save {folder}/dense --save-interval 2 {flags(folder, 'dense')}"
    run_ranks(1, train_on_rank, [*dense.split(), *more.split()])
    # A process of its own, which has not loaded the classes that the checkpoint's arguments name.
    subprocess.run(
        [sys.executable, "tools/convert_checkpoint.py", "--to", "megatron", "--from", "megatron", "--checkpoint",
         f"{folder}/dense", "--output", f"{folder}/upcycled", "--upcycle-experts", "4"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    train(1, f"--pretrained-checkpoint {folder}/upcycled --train-iters 1 {flags(folder, 'upcycled')}")
    last, first = lines(folder, "dense")[-1], lines(folder, "upcycled")[0]
    assert "load" not in last and last["step"] == 2
    assert last["flops"] == 2 * 2 * 3 * SEQUENCES * LENGTH * (TOKEN - LAYERS * (WINNERS - 1) * 3 * HIDDEN * FFN)
    assert first["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_windows_are_evenly_spaced_and_one_token_longer(folder: Path) -> None:
    windows = read_sequences(str(folder / "heldout"), count=3, length=32)
    ids = torch.from_numpy(np.fromfile(folder / "heldout.bin", np.uint16).astype(np.int64))
    assert windows.shape == (3, 33)
    assert windows[0].equal(ids[:33]) and windows[-1].equal(ids[-33:])
    with pytest.raises(CompeteError, match="holds 5000 tokens, and 200 sequences of 32 need more"):
        read_sequences(str(folder / "heldout"), count=200, length=32)
    with pytest.raises(CompeteError, match=r"--probe-data .*none\.bin is missing"):
        read_sequences(str(folder / "none"), count=1, length=32)


GOOD = {
    "probe_log": "log", "probe_data": "data", "probe_sequences": 1, "probe_interval": 1, "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1, "context_parallel_size": 1, "overlap_param_gather": False,
    "vision_model_type": None,
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pictures": (
        {"vision_model_type": "siglip"},
        "--probe-log with --vision-model-type siglip: the probe reads text alone",
    ),
    "no data": ({"probe_data": None}, "--probe-log without --probe-data"),
    "interval": ({"probe_interval": 0}, "--probe-interval 0 is out of range"),
    "stages": ({"pipeline_model_parallel_size": 2}, "--pipeline-model-parallel-size 2 with --probe-log"),
    "gather": ({"overlap_param_gather": True}, "--overlap-param-gather with --probe-log"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused(name: str) -> None:
    check_probe_arguments(argparse.Namespace(**GOOD))
    changes, says = REFUSED[name]
    with pytest.raises(CompeteError, match=says):
        check_probe_arguments(argparse.Namespace(**GOOD | changes))
    check_probe_arguments(argparse.Namespace(**GOOD | changes | {"probe_log": None}))


def test_a_checkpoint_between_two_probes_counts_at_the_mean_cost(tmp_path: Path) -> None:
    old = [{"step": step, "wall_seconds": 2.0 * step, "processor_seconds": 1.0 * step} for step in (0, 10, 20)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    log = ProbeLog(path, write=True)
    log.resume(15)
    assert (log.wall_seconds, log.processor_seconds) == (30.0, 15.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 10]
    log.resume(0)
    assert path.read_text() == ""


def test_a_router_without_logits_has_its_load_and_no_entropy() -> None:
    statistics = RouterStatistics(RouterRule(top_k=1))
    statistics.add(None, torch.tensor([[True, False], [True, False]]))
    assert np.isnan(statistics.entropy) and np.isnan(statistics.margin) and not statistics.has_logits
    assert isinstance(statistics.pairs_EE, torch.Tensor) and statistics.pairs_EE.diagonal().tolist() == [2.0, 0.0]
    assert statistics.chosen().shape == (2, 2)


def test_upstream_routers_still_return_no_logits() -> None:
    assert "return probs, routing_map\n" in inspect.getsource(TopKRouter.forward)


def test_routers_are_the_decoders_in_order_of_depth() -> None:
    """Megatron does not mark those of a hybrid model's multi-token prediction, which have the decoder's numbers."""

    def router(number: int) -> TopKRouter:
        made = TopKRouter.__new__(TopKRouter)
        torch.nn.Module.__init__(made)
        made.layer_number, made.is_mtp_layer = number, False
        return made

    model = torch.nn.Module()
    model.decoder, model.mtp = torch.nn.ModuleList([router(4), router(2)]), torch.nn.ModuleList([router(2)])
    assert routers_of(model) == [model.decoder[1], model.decoder[0]]
