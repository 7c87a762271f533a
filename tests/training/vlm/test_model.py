"""The trainer's configuration of a vision-language model."""

from types import SimpleNamespace

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.competition import competing_layers
from megatron_compete.plan.job import check_recipe
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.training.model import stock_config
from megatron_compete.training.vlm.model import VisionLanguageModelBuilder, VisionLanguageModelConfig, token_id
from tests.layout.test_vision_rules import TOWER
from tests.plan.jobs import recipe_of


def config_of(flags: str) -> VisionLanguageModelConfig:
    checked = check_recipe(recipe_of(f"{TOWER} {flags}"), 1)
    with pretended_gpu():
        config: VisionLanguageModelConfig = stock_config(checked.job.args)
    return config


def test_layers_of_all_parts_with_experts_can_compete() -> None:
    assert [layer.number for layer in competing_layers(config_of(""))] == [1, 2, 3]
    everywhere = config_of("--experts-in vision projector language --moe-layer-freq 2")
    assert [layer.number for layer in competing_layers(everywhere)] == [1, 2, 3, 4, 6]
    assert everywhere.get_builder_cls() is VisionLanguageModelBuilder


def test_the_decoder_is_dense_unless_it_is_named() -> None:
    config = config_of("--num-experts 8 --vision-num-experts 4 --vision-router-topk 1 --moe-router-pre-softmax")
    assert config.transformer.num_moe_experts is None and config.vision_language.tower.num_moe_experts == 4
    assert config.vision_language.projector.moe_router_topk == 1


@pytest.mark.parametrize("tower", [TOWER, ""], ids=["pictures", "text"])
def test_the_factor_of_scaled_frequencies_arrives(tower: str) -> None:
    """Megatron-Core 0.19 parses it and builds every model with 8."""
    checked = check_recipe(recipe_of(f"{tower} --use-rope-scaling --rope-scaling-factor 32"), 1)
    with pretended_gpu():
        config = stock_config(checked.job.args)
    assert config.rope_scaling and config.rope_scaling_factor == 32


def test_the_image_token_is_one_token() -> None:
    words = SimpleNamespace(tokenize=lambda text: [7] if text == "<image>" else [1, 2])
    assert token_id(words, "<image>") == 7
    with pytest.raises(
        CompeteError, match="--image-token <picture> is 2 tokens of the tokenizer: add it as a special token"
    ):
        token_id(words, "<picture>")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--router default-moe", "a projector's outputs are of other width"),
        ("--freeze-ViT", "--freeze-ViT keeps the routers in vision from learning who wins"),
    ],
)
def test_what_a_router_cannot_do_is_said_before_training(flags: str, words: str) -> None:
    with pytest.raises(CompeteError, match=words):
        check_recipe(recipe_of(f"{TOWER} {flags}"), 1)
