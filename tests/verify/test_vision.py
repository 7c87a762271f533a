"""A vision-language model in Megatron and in transformers: the same states, logits and generations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.cli.convert import main as convert
from megatron_compete.common.errors import CompeteError
from megatron_compete.verify.command import VerifyOptions
from megatron_compete.verify.vision import GENERATED, _room, compare_vision
from tests.checkpoint import hf_models
from tests.checkpoint.vlm import llava_models
from tests.ranks import run_rank
from tests.training.vlm.runs import train, write_data
from tests.verify.test_conversion import on_a_rank

ONE_STEP = ["--train-iters", "1", "--num-workers", "0", "--log-interval", "1", "--conversation-workers", "1"]


@torch.no_grad()
def of_megatron(folder: str) -> dict[str, torch.Tensor]:
    """The tower's states and the model's logits, of Megatron's own model as `verify` builds and loads it."""
    from megatron_compete.verify.single import load_model

    _, model = load_model(TorchDistCheckpoint(find_checkpoint(Path(folder))))
    ids, images = llava_models.tokens(), llava_models.pictures()
    positions, tiles = torch.arange(ids.shape[1]).expand(ids.shape), torch.ones(2, dtype=torch.int)
    logits, _ = model(images, ids, positions, None, num_image_tiles=tiles)
    return {"states": model.vision_model(images), "logits": logits[..., : hf_models.VOCAB]}


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tower_gives_the_states_that_llava_takes(kind: str, tmp_path: Path) -> None:
    """With weights, norms and biases of the size of trained ones; the states before the last layer, without a norm."""
    words, tower = hf_models.save(tmp_path / "words", "llama"), llava_models.save_tower(tmp_path / "tower", kind)
    llava_models.save_tokenizer(words)
    import_checkpoint(Import(words, tmp_path / "megatron", vision_tower=tower))
    with torch.no_grad():
        wanted = (
            AutoModel.from_pretrained(tower)
            .eval()(llava_models.pictures(), output_hidden_states=True)
            .hidden_states[-2]
        )
    found = run_rank(of_megatron, str(tmp_path / "megatron"))["states"]
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "family", "changes"),
    [
        ("siglip", "llama", {}),
        ("clip", "qwen2", {}),
        ("clip", "mixtral", {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}),
        *(
            pytest.param("siglip", family, {}, marks=pytest.mark.slow)
            for family in ("deepseek_v3", "gpt_oss", "qwen3_next")
        ),
    ],
)
def test_megatron_computes_the_same(kind: str, family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", kind, family, **changes)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    embeddings = llava_models.PATCHES + (changes.get("vision_feature_select_strategy") == "full")
    wanted = llava_models.logits(source, embeddings=embeddings)
    found = run_rank(of_megatron, str(tmp_path / "megatron"))["logits"]
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.argmax(-1).equal(wanted.argmax(-1))


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("qwen2", Upcycling(4)),
        ("llama", Upcycling(8, granularity=2, experts_in=("vision", "projector", "language"))),
        ("mixtral", Upcycling(8, experts_in=("projector",))),
    ],
    ids=["E4", "E8-G2-all", "E8-beside-E4"],
)
def test_an_upcycled_model_computes_what_the_dense_one_did(family: str, how: Upcycling, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", "siglip", family)
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=how))
    dense, found = llava_models.logits(source), run_rank(of_megatron, str(tmp_path / "megatron"))["logits"]
    # relative to the largest logit: two frameworks' sums are not in the same order
    assert (found - dense).abs().max() < 1e-5 * dense.abs().max()


def test_exported_experts_are_megatrons_model(tmp_path: Path) -> None:
    """Experts that differ: in a process of its own the command finds the same logits and generations."""
    source = llava_models.save(tmp_path / "source", "siglip", "llama")
    (tmp_path / "text.txt").write_text(" ".join(f"w{number % 240 + 3}" for number in range(0, 2000, 7)))
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=Upcycling(4, noise=0.5, router_std=0.5)))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "hf"))
    report = tmp_path / "found.json"
    flags = [
        "--checkpoint",
        str(tmp_path / "megatron"),
        "--hf",
        str(tmp_path / "hf"),
        "--text",
        str(tmp_path / "text.txt"),
    ]
    said = run_rank(on_a_rank, [*flags, "--tolerance", "1e-4", "--json", str(report), "--windows", "4"])
    assert "error: " not in said, said
    assert "same generation           yes" in said and GENERATED > 10
    found = json.loads(report.read_text())
    assert found["pictures"] == 2 and found["max_logit_difference"] < 1e-4 and found["top1_agreement"] == 1.0

    other = llava_models.save(tmp_path / "other", "siglip", "llama", text={"rms_norm_eps": 1e-2})
    said = run_rank(on_a_rank, [*flags[:2], "--hf", str(other), *flags[4:]])
    assert "error: --hf" in said and "logits differ by" in said
    words = hf_models.save(tmp_path / "words", "llama")
    said = run_rank(on_a_rank, [*flags[:2], "--hf", str(words), *flags[4:]])
    assert "is a language model, and --checkpoint" in said and "takes pictures" in said


def test_text_has_room_behind_a_picture_of_many_embeddings() -> None:
    """At the default length, of a SigLIP of 384 pixels; and in less than a sequence that is short."""
    default = VerifyOptions.length
    assert _room(default, 2048, 729) == default == 512
    assert _room(default, 1000, 729) == 271 and _room(8, 1000, 729) == 8
    with pytest.raises(CompeteError, match=r"sequences of 512 \(--seq-length\), and a picture takes 729 of them"):
        _room(default, 512, 729)
    with pytest.raises(CompeteError, match="--length 3 is too little text behind a picture: give 4 or more"):
        _room(3, 2048, 729)


def test_a_model_without_room_is_refused_before_it_is_built(tmp_path: Path) -> None:
    checkpoint = TorchDistCheckpoint(find_checkpoint(imported(tmp_path)))
    checkpoint.arguments["seq_length"] = llava_models.PATCHES + 3
    with pytest.raises(CompeteError, match=r"sequences of 19 .*a picture takes 16 of them"):
        compare_vision(checkpoint, tmp_path / "none", ["text"], 1, VerifyOptions.length, None, False)


def imported(folder: Path) -> Path:
    import_checkpoint(Import(llava_models.save(folder / "source"), folder / "megatron"))
    return folder / "megatron"


@pytest.mark.parametrize("to", ["hf", "megatron"])
def test_a_conversion_is_verified_in_the_same_command(to: str, tmp_path: Path) -> None:
    source = llava_models.save(tmp_path / "source", "clip", "qwen2")
    (tmp_path / "text.txt").write_text(" ".join(f"w{number % 240 + 3}" for number in range(200)))
    if to == "hf":
        import_checkpoint(Import(source, tmp_path / "megatron"))
        source = tmp_path / "megatron"
    flags = [
        "--to",
        to,
        "--checkpoint",
        str(source),
        "--output",
        str(tmp_path / "out"),
        "--verify",
        str(tmp_path / "text.txt"),
    ]
    said = run_rank(on_a_rank, flags, convert)
    assert "error: " not in said, said
    assert "same generation           yes" in said and "same preferred token      100.00%" in said


EMA = "--compete-response-centering ema"  # its running statistics are in the checkpoint, and of training alone


@pytest.mark.parametrize(
    ("world", "flags"),
    [
        (1, EMA),
        pytest.param(2, "--expert-model-parallel-size 2", marks=pytest.mark.slow),
        pytest.param(2, "--pipeline-model-parallel-size 2", marks=pytest.mark.slow),
    ],
)
def test_a_trained_checkpoint_is_exported_and_verified(world: int, flags: str, tmp_path: Path) -> None:
    """Of the trainer, with competing experts in tower and projector, and a picture in every second window."""
    data = write_data(tmp_path)
    train(
        world, f"{data} {flags} --experts-in vision projector --train-iters 2 --save {tmp_path}/run --save-interval 2"
    )
    exported = export_to_hf(Export(tmp_path / "run", tmp_path / "hf"))
    assert exported.architecture == "CompeteLlavaForConditionalGeneration"
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "LlavaImageProcessor" and processor["do_pad"]  # as the run padded
    words = json.loads(next(tmp_path.glob("pictures/*.json")).read_text())
    text = " ".join(turn["value"].replace("<image>", "") for one in words for turn in one["conversations"])
    (tmp_path / "text.txt").write_text(text)
    flags = ["--checkpoint", str(tmp_path / "run"), "--hf", str(tmp_path / "hf"), "--text", str(tmp_path / "text.txt")]
    said = run_rank(on_a_rank, [*flags, "--tolerance", "1e-4", "--windows", "6"])
    assert "error: " not in said, said
    assert "same pictures             yes" in said and "same generation           yes" in said


def test_an_upcycled_model_goes_on_training_by_its_recipe(tmp_path: Path) -> None:
    """The first loss is the dense model's, which the recipe of another import trains."""
    from megatron_compete.launch.recipe import read_recipe
    from megatron_compete.report.scalars import read_scalars
    from tests.ranks import run_ranks
    from tests.training.runs import train_on_rank

    pictures = write_data(tmp_path).replace("--train-data-path", "--data-path").split()
    del pictures[2:4]  # the recipe says how --data-path is split
    words = hf_models.save(tmp_path / "words", "llama", max_position_embeddings=48)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tmp_path / "processor" / name).exists():
            (words / name).write_bytes((tmp_path / "processor" / name).read_bytes())
    tower = llava_models.save_tower(tmp_path / "tower", "siglip", image_size=16)
    losses = []
    for name, how in (("dense", None), ("moe", Upcycling(4))):
        import_checkpoint(Import(words, tmp_path / name, vision_tower=tower, upcycling=how))
        recipe = read_recipe(tmp_path / name / "recipe.yaml")
        recipe.override([*pictures, "--tensorboard-dir", f"{tmp_path}/{name}-board", *ONE_STEP])
        command = recipe.command()
        run_ranks(1, train_on_rank, command[command.index("-m") + 2 :])
        losses.append(read_scalars(tmp_path / f"{name}-board")["lm loss"][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
