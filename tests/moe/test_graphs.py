"""CUDA graphs beside competition: Megatron's own capture and replay in the trainer, a graph itself replaced.

What stands for a graph runs the layer's captured part again, as a part that is being captured: so it is a normal step's
router, whatever step it is, and it leaves no metrics.
"""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.report.scalars import read_scalars
from tests.moe.layouts import Layout, transformer_config
from tests.ranks import run_ranks
from tests.training.runs import MODEL, train, train_on_rank

STEPS = 6
FLAGS = f"""
--train-iters {STEPS} --bf16 --tensorboard-log-interval 1 --expert-model-parallel-size 2
--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01 --moe-shared-expert-intermediate-size 32
"""
GRAPHS = "--cuda-graph-impl transformer_engine --cuda-graph-warmup-steps 1 --cuda-graph-modules"
UTILITY = "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0"


def train_with_graphs(arguments: list[str]) -> list[str]:
    """The trainer with graphs; what the layers ran as, after the capture."""
    import torch
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import cuda_graphs, transformer_layer
    from megatron.core.transformer.module import GraphableMegatronModule

    ran: list[str] = []

    class Graph:
        """Called as Transformer Engine's graphs are."""

        def __init__(self, layer: Any) -> None:
            self.layer = layer

        def __call__(self, *args: Any, is_first_microbatch: bool = False, **kwargs: Any) -> Any:
            ran.append(f"graph {self.layer.layer_number}")
            cuda_graphs._set_capture_start()
            try:
                return self.layer._te_cuda_graph_capture(*args, **kwargs)
            finally:
                cuda_graphs._set_capture_end()

        def reset(self) -> None: ...

    def make_graphed_callables(
        layers: Any, args: Any, sample_kwargs: Any, _num_layers_per_chunk: Any, **_: Any
    ) -> list[Graph]:
        assert cuda_graphs.is_graph_capturing()
        with torch.random.fork_rng():
            for layer in layers:
                position = layers.index(layer)
                layer(*args[position], **sample_kwargs[position])
        times = len(args) // len(layers)
        if len(_num_layers_per_chunk) == len(layers):  # each layer a chunk of its own, under EP overlap
            return [Graph(layer) for layer in layers for _ in range(times)]
        return [Graph(layer) for _ in range(times) for layer in layers]

    def see(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(f"eager {self.layer_number}")
        return forward(self, *args, **kwargs)

    tracker = random.initialize_rng_tracker
    random.initialize_rng_tracker = lambda *_, **__: tracker()  # one that graphs can hold needs a device
    forward = transformer_layer.TransformerLayer.forward
    transformer_layer.TransformerLayer.forward = see
    for module in ("transformer_engine", "transformer_engine.pytorch"):
        sys.modules[module] = types.ModuleType(module)
    cuda_graphs.HAVE_TE_GRAPHS, cuda_graphs.make_graphed_callables = True, make_graphed_callables
    cuda_graphs.is_te_min_version = transformer_layer.is_te_min_version = lambda *_, **__: True
    assert issubclass(transformer_layer.TransformerLayer, GraphableMegatronModule)
    train_on_rank(arguments)
    return ran


RUNS = {
    "attn": ("attn", ""),
    "router": ("attn moe_router", ""),
    "router-utility": ("moe_router", UTILITY),
    "preprocess": ("attn moe_router moe_preprocess", ""),
    "preprocess-overlapped-utility": (
        "attn moe_router moe_preprocess",
        f"{UTILITY} --overlap-moe-expert-parallel-comm",
    ),
}
"""Megatron's modules in graphs, and other flags."""
COVERING = ("router", "preprocess-overlapped-utility")


@pytest.mark.parametrize("name", [name if name in COVERING else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])  # fmt: skip
def test_training_is_the_same_with_graphs(name: str, tmp_path: Path) -> None:
    modules, flags = RUNS[name]
    train(2, f"{FLAGS} {flags} --tensorboard-dir {tmp_path / 'eager'}")
    arguments = f"{MODEL} {FLAGS} {flags} {GRAPHS} {modules} --tensorboard-dir {tmp_path / 'graphs'}"
    ran = run_ranks(2, train_with_graphs, arguments.split())[0]
    eager, graphs = read_scalars(tmp_path / "eager"), read_scalars(tmp_path / "graphs")
    active = eager["competition/active-layers"]
    assert max(list(active.values())[1:]) > 0
    for metric in ("lm loss", "grad-norm", "load_balancing_loss", "competition/active-layers", "competition/agreement"):
        assert graphs[metric] == eager[metric], metric
    assert graphs["moe/load-max"] == eager["moe/load-max"]
    if "moe_preprocess" not in modules:
        assert graphs["moe/router-entropy"] == pytest.approx(eager["moe/router-entropy"])
    passes = 2  # microbatches of a rank in a step
    replays = sum(run.startswith("graph") for run in ran)
    competing = int(sum(list(active.values())[1:]))
    expected = (STEPS - 1) * 4 - (competing if "moe" in modules else 0)
    assert replays == expected * passes, (replays, expected)


def test_impossible_graphs_are_refused() -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    config.cuda_graph_modules = []
    config.cuda_graph_impl = "transformer_engine"
    check_supported(config, CompeteConfig())
    for impl in ("full_iteration", "local"):
        config.cuda_graph_impl = impl
        with pytest.raises(CompeteError, match=f"--cuda-graph-impl {impl} does not work"):
            check_supported(config, CompeteConfig())


ON_A_DEVICE = """
--train-iters 12 --bf16 --tensorboard-log-interval 1 --moe-grouped-gemm --transformer-impl transformer_engine
--hidden-size 128 --ffn-hidden-size 256 --moe-ffn-hidden-size 256 --no-gradient-accumulation-fusion
"""


@pytest.mark.gpu
@pytest.mark.parametrize("modules", ["attn", "attn moe_router", "attn moe_router moe_preprocess"])
@pytest.mark.parametrize("kind", ["", UTILITY])
def test_training_with_real_graphs(modules: str, kind: str, tmp_path: Path) -> None:
    """One rank in a process of its own, against the same without graphs; bf16 sums may differ in order."""
    pytest.importorskip("transformer_engine")
    curves = {}
    for name, flags in (("eager", "--te-rng-tracker"), ("graphs", f"{GRAPHS} {modules}")):
        folder = tmp_path / name
        arguments = f"{MODEL} {ON_A_DEVICE} {kind} {flags} --tensorboard-dir {folder}".split()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        subprocess.run([*command, "-m", "megatron_compete.training.pretrain", *arguments], check=True, timeout=300)
        curves[name] = read_scalars(folder)
    assert max(curves["eager"]["competition/active-layers"].values()) > 0
    assert curves["graphs"]["competition/active-layers"] == curves["eager"]["competition/active-layers"]
    for step, loss in curves["eager"]["lm loss"].items():
        assert curves["graphs"]["lm loss"][step] == pytest.approx(loss, rel=2e-2), step
