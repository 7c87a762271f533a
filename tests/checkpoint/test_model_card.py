"""The model card lists what the checkpoint knows."""

from megatron_compete.checkpoint.model_card import model_card
from tests.checkpoint.gpt import ARGUMENTS


def test_arguments_and_tokens() -> None:
    card = model_card(ARGUMENTS | {"lr": 1e-3, "fp16": False, "moe_z_loss_coeff": None}, 7, has_tokenizer=True)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "after 7 iterations (2,240 tokens)" in card
    assert "| `--lr` | 0.001 |" in card
    assert "| `--compete-rate` | 0.07 |" in card
    assert "--fp16" not in card and "z-loss" not in card
    assert "AutoTokenizer" in card


def test_without_tokenizer_and_competition() -> None:
    plain = {name: value for name, value in ARGUMENTS.items() if not name.startswith("compete")}
    card = model_card(plain, 7, has_tokenizer=False)
    assert "AutoTokenizer" not in card
    assert "## Competition" not in card
