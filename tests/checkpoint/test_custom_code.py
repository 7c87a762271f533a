"""The modeling code that goes with an export: generation, padding, loss, and nothing but torch and transformers."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_compete.checkpoint import custom_code
from megatron_compete.checkpoint.custom_code import auto_map, is_own_code, write_code
from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer
from megatron_compete.checkpoint.tokenizer_proof import prove
from megatron_compete.cli.convert import main as convert
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import gpt
from tests.ranks import run_rank

NAME = "competesmoe with everything else"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom")
    run_rank(gpt.save_all, str(folder), {"model": gpt.VARIANTS[NAME][1]})
    return export_to_hf(Export(folder / "model", folder / "hf")).output


@pytest.fixture(scope="module")
def model(exported: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()


PROMPTS = gpt.tokens()[:2, :12].clamp(min=1)
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def test_generation_with_and_without_cache(model: Any) -> None:
    with_cache = model.generate(PROMPTS, **GREEDY)
    assert with_cache.shape == (2, 20)
    assert with_cache.equal(model.generate(PROMPTS, use_cache=False, **GREEDY))
    with torch.no_grad():
        best = model(with_cache[:, :-1]).logits.argmax(-1)
    assert best[:, 11:].equal(with_cache[:, 12:])


def test_padding_on_the_left_changes_nothing(model: Any) -> None:
    mask = torch.ones_like(PROMPTS)
    mask[0, :4] = 0
    padded = model.generate(PROMPTS, attention_mask=mask, **GREEDY)
    alone = model.generate(PROMPTS[:1, 4:], **GREEDY)
    assert padded[0, 12:].equal(alone[0, 8:])


def test_beams_and_prefixes(model: Any) -> None:
    assert model.generate(PROMPTS, num_beams=3, **GREEDY).shape == (2, 20)
    with torch.no_grad():
        whole = model(PROMPTS).logits
        front = model(PROMPTS[:, :5], use_cache=True)
        back = model(PROMPTS[:, 5:], past_key_values=front.past_key_values).logits
    torch.testing.assert_close(torch.cat((front.logits, back), 1), whole, atol=1e-5, rtol=0)


def test_loss_is_that_of_the_next_token(model: Any) -> None:
    labels = PROMPTS.clone()
    labels[0, :6] = -100
    with torch.no_grad():
        outputs = model(PROMPTS, labels=labels)
    chances = outputs.logits[:, :-1].log_softmax(-1).gather(2, PROMPTS[:, 1:, None])[..., 0]
    kept = labels[:, 1:] != -100
    torch.testing.assert_close(outputs.loss, -chances[kept].mean())


def test_the_correction_bias_stays_fp32(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    biases = [name for name in dtypes if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    assert {dtypes.pop(name) for name in biases} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}


def test_what_is_saved_again_is_the_same(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    with torch.no_grad():
        assert again(PROMPTS).logits.equal(model(PROMPTS).logits)


def test_into_megatron_and_back_is_bit_for_bit_the_same(exported: Path, tmp_path: Path) -> None:
    convert(["--to", "megatron", "--checkpoint", str(exported), "--output", str(tmp_path / "megatron")])
    again = export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf")).output
    wanted, found = (load_file(folder / "model.safetensors") for folder in (exported, again))
    assert wanted.keys() == found.keys()
    assert all(found[name].equal(wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted)
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (exported, again))
    assert first == second


def test_a_stretched_rotation_is_not_imported(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "hf")
    config = json.loads((exported / "config.json").read_text()) | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompeteError, match=r"config\.json has rope_parameters .*linear"):
        convert(["--to", "megatron", "--checkpoint", str(tmp_path / "hf"), "--output", str(tmp_path / "megatron")])


def test_an_export_asks_nobody_whether_to_run_its_code(
    train_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks with input() and waits, where trust_remote_code is left open."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    family = FAMILIES["competesmoe"]
    sentencepiece = read_sentencepiece(train_model())
    write_tokenizer(sentencepiece, tmp_path, 64)
    write_code(family, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.name, "auto_map": auto_map(family)}))
    assert prove(tmp_path, sentencepiece, samples=5) > 5
    assert asked == []


def test_own_code_is_known_by_its_bytes(exported: Path, tmp_path: Path) -> None:
    assert is_own_code(exported)

    def changed(name: str, change: Callable[[str], str]) -> bool:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(exported, folder)
        before = (folder / name).read_text() if (folder / name).exists() else "{}"
        (folder / name).write_text(change(before))
        return is_own_code(folder)

    assert changed("README.md", lambda text: text + "more")
    assert not changed("modeling_competesmoe.py", lambda text: text + "import os\n")
    assert not changed("configuration_competesmoe.py", lambda text: "")
    assert not changed(
        "config.json", lambda text: text.replace('"modeling_competesmoe.', '"other/model--modeling_competesmoe.')
    )
    assert not changed("config.json", lambda text: text.replace("competesmoe", "mixtral"))
    assert not changed("tokenizer_config.json", lambda text: '{"auto_map": {"AutoTokenizer": ["other--a.B", null]}}')


def test_the_code_stands_alone() -> None:
    for path in Path(custom_code.__file__).parent.glob("*_competesmoe.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"inspect", "torch", "torch.nn.functional"}
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert str(node.module).split(".")[0] in {"torch", "transformers"}
