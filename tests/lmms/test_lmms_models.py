"""What lmms-eval's own models do with our exports: each test fails where `examples/lmms_exported.py` could go."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.lmms


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    from tests.lmms.folders import write_model

    return write_model(tmp_path / "model")


def request_to(model: Any, messages: list[dict[str, Any]]) -> Any:
    """A question as lmms-eval hands it to a model; `messages` is what its task makes of the document."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"task": {"split": [None]}}
    arguments = ("", lambda doc: messages, {"max_new_tokens": 2}, 0, "task", "split")
    return Instance(
        request_type="generate_until", arguments=arguments, idx=0,
        metadata={"task": "task", "doc_id": 0, "repeats": 1},
    )  # fmt: skip


def test_huggingface_loads_no_head_and_hands_over_a_keyword_that_processors_refuse(stock: Path) -> None:
    from lmms_eval.models.chat.huggingface import Huggingface

    model = Huggingface(str(stock), device="cpu", device_map="cpu")
    assert type(model.model).__name__ == "LlavaModel"  # without the head that generates
    assert model.model.dtype == torch.bfloat16  # of a folder in float32
    question = [{"role": "user", "content": [{"type": "text", "text": "where is the two ?"}]}]
    with pytest.raises(ValueError, match="audios"):
        model.generate_until([request_to(model, question)])


def test_exported_answers_the_same_question(stock: Path) -> None:
    from examples.lmms_exported import ExportedModel

    model = ExportedModel(str(stock), device="cpu")
    assert model.model.dtype == torch.float32
    question = [{"role": "user", "content": [{"type": "text", "text": "where is the two ?"}]}]
    assert model._prompt(model._messages(request_to(model, question))) == "where is the two ? "
    (answer,) = model.generate_until([request_to(model, question)])
    assert 1 <= len(answer.split()) <= 2


def test_exported_refuses_a_video(stock: Path) -> None:
    from examples.lmms_exported import ExportedModel

    model = ExportedModel(str(stock), device="cpu")
    question = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    with pytest.raises(ValueError, match="answers questions about pictures"):
        model.generate_until([request_to(model, question)])


def test_exported_takes_templates_for_parts_alone(stock: Path) -> None:
    """Such as llava-hf's, which would drop a question that is a string."""
    from examples.lmms_exported import ExportedModel

    (stock / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<image>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %} ANSWER:"
    )
    model = ExportedModel(str(stock), device="cpu")
    parts = [{"type": "image", "url": None}, {"type": "text", "text": "where is the two ?"}]
    messages = model._messages(request_to(model, [{"role": "user", "content": parts}]))
    assert model._prompt(messages) == "<image>where is the two ? ANSWER:"


@pytest.mark.parametrize(
    ("template", "trained", "count"),
    [("", None, 1), ("{{ bos_token }}", None, 1), ("", "chatml", 0), ("{{ bos_token }}", "vicuna_v1", 1)],
    ids=["tokenizer's", "template's", "trained without", "trained with"],
)
def test_exported_starts_as_training_did(stock: Path, template: str, trained: str | None, count: int) -> None:
    """With a tokenizer that adds a BOS: one where the template renders none or one, and none where a run had none."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from examples.lmms_exported import ExportedModel

    tokenizer = AutoTokenizer.from_pretrained(stock)
    bos = (tokenizer.eos_token, tokenizer.eos_token_id)  # the model embeds no further token
    tokenizer.bos_token = bos[0]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(stock)
    (stock / "chat_template.jinja").write_text(template + "{% for m in messages %}{{ m.content }}{% endfor %}")
    if trained:
        config = json.loads((stock / "config.json").read_text())
        (stock / "config.json").write_text(json.dumps(config | {"conversation_template": trained}))
    model = ExportedModel(str(stock), device="cpu")
    given: list[list[int]] = []
    generate = model.model.generate
    model.model.generate = lambda **inputs: (given.extend(inputs["input_ids"].tolist()), generate(**inputs))[1]
    model.generate_until(
        [request_to(model, [{"role": "user", "content": [{"type": "text", "text": "where is the two ?"}]}])]
    )
    assert len(given) == 1 and given[0].count(bos[1]) == count and len(given[0]) == 5 + count


def test_the_guides_tasks_are_lmms_evals() -> None:
    """Names of the table, whose configurations import the code of their metrics."""
    from lmms_eval.tasks import TaskManager

    guide = Path(__file__).resolve().parent.parent.parent / "docs/guides/evaluating-vision-language.md"
    table = guide.read_text().split("| benchmark |")[1].splitlines()
    names = [row.split("|")[2].strip().strip("`") for row in table if row.startswith("| ") and "`" in row]
    assert len(names) == 12
    manager = TaskManager("ERROR")
    for name in [*names, "mmbench_en_dev_static", "mmmu_pro", "ocrbench", "mmerealworld_lite"]:
        assert name in manager.all_tasks
        members = manager._get_config(name)
        for member in members["task"] if isinstance(members.get("task"), list) else [name]:
            assert manager._get_config(member)["dataset_path"]
