"""A run of this project's trainer in the authors' form, exported with the code that goes along, and trained on from there."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.report.scalars import read_scalars
from tests.checkpoint import hf_models
from tests.ranks import run_rank, run_ranks
from tests.training.runs import MODEL, losses, train_on_rank

AUTHORS = """
--normalization LayerNorm --relu --rotary-percent 0.5 --compete-response-centering ema
--compete-rate 0.5 --expert-model-parallel-size 2 --train-iters 3 --no-save-optim --no-save-rng --save-interval 3
"""

GO_ON = """
--seq-length 32 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --train-iters 1 --mock-data --num-workers 0
--eval-iters 0 --log-interval 1
"""


def megatron_logits(folder: str, tokens: torch.Tensor) -> torch.Tensor:
    from megatron_compete.verify.single import load_model, logits

    _, trained = load_model(TorchDistCheckpoint(Path(folder)))
    return logits(trained, tokens)


@pytest.mark.slow
def test_the_authors_form(tmp_path: Path) -> None:
    arguments = f"{MODEL.replace('--swiglu', '')} {AUTHORS} --save {tmp_path / 'saved'}"
    run_ranks(2, train_on_rank, arguments.split())
    checkpoint = tmp_path / "saved" / "iter_0000003"
    assert any(".mlp.centering." in key for key in TorchDistCheckpoint(checkpoint).tensors)
    exported = export_to_hf(Export(tmp_path / "saved", tmp_path / "hf"))
    assert exported.family.name == "competesmoe"
    model = AutoModelForCausalLM.from_pretrained(exported.output, trust_remote_code=True).eval()
    tokens = torch.randint(0, 127, (4, 32), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(tokens).logits
    wanted = run_rank(megatron_logits, str(checkpoint), tokens)[..., : found.shape[-1]]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.argmax(-1).equal(wanted.argmax(-1))
    import_checkpoint(Import(exported.output, tmp_path / "back"))
    recipe = read_recipe(tmp_path / "back" / "recipe.yaml")
    assert recipe.arguments["relu"] is True and recipe.arguments["normalization"] == "LayerNorm"
    recipe.override(f"{GO_ON} --tensorboard-dir {tmp_path / 'log'}".split())
    command = recipe.command()
    run_ranks(1, train_on_rank, command[command.index("-m") + 2 :])
    assert losses(tmp_path / "log").keys() == {1}
    tensors, back = (TorchDistCheckpoint(find_checkpoint(tmp_path / name)) for name in ("saved", "back"))
    key = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    assert tensors.read(key).equal(back.read(key))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "qwen3_next", "nemotron_h"])
def test_the_recipe_of_an_import_trains_with_competition(family: str, tmp_path: Path) -> None:
    import_checkpoint(Import(hf_models.save(tmp_path / "hf", family), tmp_path / "imported"))
    recipe = read_recipe(tmp_path / "imported" / "recipe.yaml")
    more = (
        f"--tensorboard-dir {tmp_path / 'log'} --compete-rate 1 --compete-warmup-steps 0 --compete-max-active-layers 9"
    )
    recipe.override(f"{GO_ON} {more} --train-iters 2".split())
    command = recipe.command()
    run_ranks(1, train_on_rank, command[command.index("-m") + 2 :])
    assert losses(tmp_path / "log").keys() == {1, 2}
    assert read_scalars(tmp_path / "log")["competition/active-layers"][2] > 0
