"""LLaVA with experts under transformers: its mixtures, gradients, saving, and generating from a picture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from megatron_compete.checkpoint.custom_code.configuration_competellava import CompeteLlavaConfig
from megatron_compete.checkpoint.custom_code.modeling_competellava import (
    CompeteLlavaForConditionalGeneration,
    CompeteLlavaMixture,
)
from tests.checkpoint.hf_models import CONFIGS
from tests.checkpoint.vlm.llava_models import IMAGE, PATCHES, TOWER, expanded, pictures, randomize, tokens


def config(**changes: Any) -> CompeteLlavaConfig:
    return CompeteLlavaConfig(
        text_config={"model_type": "llama", **CONFIGS["llama"]}, vision_config={"model_type": "siglip_vision_model", **TOWER},
        image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full", **changes,
    )  # fmt: skip


def model(**changes: Any) -> CompeteLlavaForConditionalGeneration:
    made = CompeteLlavaForConditionalGeneration(config(**changes))
    randomize(made)
    return made.eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": expanded(tokens(), PATCHES), "pixel_values": pictures()}


@pytest.mark.parametrize("in_fp32", [True, False])
def test_a_mixture_is_the_weighted_sum_of_its_experts(in_fp32: bool) -> None:
    torch.manual_seed(0)
    given = config(num_experts=5, num_experts_per_tok=3, router_in_fp32=in_fp32)
    mixture = CompeteLlavaMixture(given, lambda: nn.Linear(8, 6), 8, 6).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    x[:, :, 0] = 3.0
    with torch.no_grad():
        mixture.gate.weight[4] = -10.0 * torch.eye(8)[0]  # an expert that no patch goes to
    logits = mixture.gate(x)
    best, chosen = logits.topk(3)
    assert (chosen != 4).all()
    weights = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))
    wanted = sum(weights[..., number, None] * expert(x) for number, expert in enumerate(mixture.experts))
    torch.testing.assert_close(mixture(x), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("parts", [(), ("vision",), ("projector",), ("vision", "projector")], ids=str)
def test_parts_that_mix(parts: tuple[str, ...], tmp_path: Path) -> None:
    made = model(experts_in=parts, projector_intermediate_size=20)
    mixtures = {name for name, module in made.named_modules() if isinstance(module, CompeteLlavaMixture)}
    tower = {f"model.vision_tower.encoder.layers.{layer}.mlp" for layer in range(3)}
    assert mixtures == (tower if "vision" in parts else set()) | {"model.multi_modal_projector"} & {f"model.multi_modal_{one}" for one in parts}  # fmt: skip
    made.save_pretrained(tmp_path)
    again, report = CompeteLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert again.eval()(**inputs()).logits.equal(made(**inputs()).logits)


def test_gradients_reach_routers_and_experts() -> None:
    made = model(num_experts=2, num_experts_per_tok=2)
    made.train()(**inputs(), labels=inputs()["input_ids"]).loss.backward()
    names = [name for name, _ in made.named_parameters() if ".experts." in name or ".gate." in name]
    assert len(names) == 4 * (1 + 2 * 4)  # mixtures, each with a router and two experts
    for name, parameter in made.named_parameters():
        if name in names:
            assert parameter.grad is not None and parameter.grad.any(), name


def test_generating_with_a_cache_is_generating_without() -> None:
    made = model()
    with torch.no_grad():
        cached, whole = (
            made.generate(**inputs(), max_new_tokens=5, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert cached.equal(whole) and cached.shape[1] == inputs()["input_ids"].shape[1] + 5


def test_parts_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"experts_in \['language'\] is not of vision, projector"):
        config(experts_in=("language",))
