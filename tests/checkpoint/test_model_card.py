"""The model card lists what the checkpoint knows."""

from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.model_card import model_card
from tests.checkpoint.gpt import ARGUMENTS, DENSE, SIGMOID


def test_arguments_and_tokens() -> None:
    card = model_card(
        FAMILIES["mixtral"], ARGUMENTS | {"lr": 1e-3, "fp16": False, "moe_z_loss_coeff": None}, 7, has_tokenizer=True
    )
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "after 7 iterations (2,240 tokens)" in card
    assert "| `--lr` | 0.001 |" in card
    assert "| `--compete-rate` | 0.07 |" in card
    assert "--fp16" not in card and "z-loss" not in card
    assert "AutoTokenizer" in card


def test_without_tokenizer_and_competition() -> None:
    plain = {name: value for name, value in ARGUMENTS.items() if not name.startswith("compete")}
    card = model_card(FAMILIES["mixtral"], plain, 7, has_tokenizer=False)
    assert "AutoTokenizer" not in card
    assert "## Competition" not in card


def test_code_of_its_own_is_said() -> None:
    card = model_card(FAMILIES["competesmoe"], ARGUMENTS | {"relu": True}, 7, has_tokenizer=True)
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder")' not in card  # it would ask
    assert "modeling_competesmoe.py" in card


def test_a_dense_model_is_no_mixture() -> None:
    card = model_card(FAMILIES["llama"], ARGUMENTS | DENSE, 7, has_tokenizer=False)
    assert "mixture" not in card and "Llama" in card


def test_what_a_reader_must_know() -> None:
    card = model_card(FAMILIES["glm4_moe"], ARGUMENTS | SIGMOID, 7, has_tokenizer=False)
    assert "Load it with transformers 5" in card
    ungrouped = SIGMOID | {"moe_router_num_groups": None, "moe_router_group_topk": None}
    assert "transformers 5" not in model_card(FAMILIES["glm4_moe"], ARGUMENTS | ungrouped, 7, has_tokenizer=False)
