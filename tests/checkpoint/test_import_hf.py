"""Hugging Face to Megatron: the same model, the same bits on the way back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.checkpoint.upcycle import Upcycling
from megatron_compete.cli.convert import main
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import read_recipe
from tests.checkpoint import hf_models
from tests.checkpoint.gpt import named
from tests.ranks import run_rank


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def megatron_logits(folder: str) -> torch.Tensor:
    """Of Megatron's own model, built and loaded as `tools/verify_checkpoint.py` does."""
    from megatron_compete.verify.single import load_model, logits

    _, model = load_model(TorchDistCheckpoint(find_checkpoint(Path(folder))))
    return logits(model, hf_models.tokens())[..., : hf_models.VOCAB]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", hf_models.CONFIGS)
def test_there_and_back_is_bit_for_bit_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", family, dtype, shard="60KB")
    import_checkpoint(Import(source, tmp_path / "megatron", file_bytes=50_000))
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "back", family=named(family)))
    wanted, found = weights(source), weights(tmp_path / "back")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].equal(tensor), name
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["model_type"] == family


@pytest.mark.parametrize(
    "family", ["mixtral", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "qwen3_next", "nemotron_h"]
)
def test_megatron_computes_the_same(family: str, tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", family)
    import_checkpoint(Import(source, tmp_path / "megatron"))
    wanted, found = hf_models.logits(source), run_rank(megatron_logits, str(tmp_path / "megatron"))
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.argmax(-1).equal(wanted.argmax(-1))


@pytest.mark.parametrize(
    ("family", "how"),
    [
        # test_probe.py has it in the trainer, from training a dense model to the loss of its mixture
        pytest.param("llama", Upcycling(4), id="llama-E4", marks=pytest.mark.slow),
        pytest.param("mistral", Upcycling(4), id="mistral-E4", marks=pytest.mark.slow),
        pytest.param("qwen3", Upcycling(8, granularity=2), id="qwen3-E8-G2"),
    ],
)
def test_an_upcycled_model_computes_what_the_dense_one_did(family: str, how: Upcycling, tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", family, tie_word_embeddings=family == "qwen3")
    import_checkpoint(Import(source, tmp_path / "dense"))
    import_checkpoint(Import(source, tmp_path / "upcycled", upcycling=how))
    import_checkpoint(Import(tmp_path / "dense", tmp_path / "again", source="megatron", upcycling=how))
    dense = run_rank(megatron_logits, str(tmp_path / "dense"))
    found = run_rank(megatron_logits, str(tmp_path / "upcycled"))
    assert dense.std() > 0.3
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=0)
    one, other = (TorchDistCheckpoint(find_checkpoint(tmp_path / name)) for name in ("upcycled", "again"))
    assert one.tensors == other.tensors
    assert all(one.read(key).equal(other.read(key)) for key in one.tensors)


def test_an_upcycled_model_is_exported_as_a_mixture(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    import_checkpoint(Import(source, tmp_path / "upcycled", upcycling=Upcycling(8, granularity=2)))
    export_to_hf(Export(tmp_path / "upcycled", tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "mixtral"
    torch.testing.assert_close(hf_models.logits(tmp_path / "hf"), hf_models.logits(source), atol=1e-5, rtol=0)


def parse_all(commands: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What Megatron's parser makes of each command; then its `validate_args` has passed them."""
    import sys

    from megatron.training.arguments import parse_args, validate_args

    from megatron_compete.training.arguments import add_arguments

    found = {}
    for name, tokens in commands.items():
        sys.argv = ["pretrain", *tokens]
        found[name] = dict(vars(parse_args(add_arguments)))
        validate_args(parse_args(add_arguments))
    return found


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """An import of every family, and what its recipe says to Megatron's parser."""
    folder = tmp_path_factory.mktemp("recipes")
    commands = {}
    for family in hf_models.CONFIGS:
        import_checkpoint(Import(hf_models.save(folder / "hf" / family, family), folder / family))
        command = read_recipe(folder / family / "recipe.yaml").command()
        commands[family] = command[command.index("-m") + 2 :]
    return folder, run_rank(parse_all, commands)


@pytest.mark.parametrize("family", hf_models.CONFIGS)
def test_the_recipe_says_what_the_checkpoint_does(family: str, recipes: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, parsed = recipes[0] / family, recipes[1][family]
    saved = TorchDistCheckpoint(find_checkpoint(folder)).arguments
    assert parsed["pretrained_checkpoint"] == str(folder)
    assert parsed["padded_vocab_size"] == 256
    differing = {
        name: (value, parsed.get(name))
        for name, value in saved.items()
        if not name.startswith("hf_") and parsed.get(name) != value and (value or parsed.get(name))
    }
    assert differing == {}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    (source / "tokenizer.json").write_text("{}")
    flags = ["--to", "megatron", "--checkpoint", str(source), "--output", str(tmp_path / "megatron")]
    main([*flags, "--upcycle-experts", "8", "--granularity", "2", "--top-k", "2"])
    said = capsys.readouterr().out
    assert "upcycled to 8 experts, 2 a token, granularity 2: the dense model's function is kept" in said
    assert f"megatron-compete pretrain --recipe {tmp_path / 'megatron' / 'recipe.yaml'}" in said
    saved = TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron")).arguments
    assert saved["tokenizer_type"] == "HuggingFaceTokenizer"
    assert (Path(saved["tokenizer_model"]) / "tokenizer.json").is_file()
    recipe = read_recipe(tmp_path / "megatron" / "recipe.yaml").arguments
    assert recipe["compete-diversity-coeff"] > 0
    with pytest.raises(CompeteError, match=r"--output .* exists"):
        main([*flags, "--upcycle-experts", "4"])
    main([*flags, "--upcycle-experts", "4", "--force", "--noise", "0.1"])
    assert "function is NOT kept" in capsys.readouterr().out


def test_a_run_is_not_replaced(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    import_checkpoint(Import(source, tmp_path / "megatron"))
    (tmp_path / "megatron" / "iter_0000010").mkdir()
    (tmp_path / "megatron" / "iter_0000010" / "__0_0.distcp").write_bytes(b"days of work")
    with pytest.raises(CompeteError, match=r"holds what the conversion did not write: iter_0000010/__0_0\.distcp"):
        import_checkpoint(Import(source, tmp_path / "megatron", force=True))
    assert (tmp_path / "megatron" / "iter_0000010" / "__0_0.distcp").is_file()


def test_a_run_folder_with_a_recipe_is_not_replaced(tmp_path: Path) -> None:
    """Every run folder that `submit` writes holds a recipe.yaml, as an import does."""
    source = hf_models.save(tmp_path / "source", "llama")
    run = tmp_path / "run"
    (run / "checkpoints" / "iter_0000010").mkdir(parents=True)
    (run / "recipe.yaml").write_text("arguments: {}\n")
    with pytest.raises(CompeteError, match="is not an earlier conversion"):
        import_checkpoint(Import(source, run, force=True))
    assert (run / "checkpoints" / "iter_0000010").is_dir()


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = weights(folder)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, "has no model.norm.weight"),
        ({"model__norm__weight": torch.ones(3)}, r"model.norm.weight has shape \(3,\), config.json makes it \(32,\)"),
        ({"model__norm__weight": torch.ones(32).to(torch.int64)}, "only fp32, bf16 and fp16"),
        ({"model__visual__weight": torch.ones(3)}, "1 tensors that config.json does not ask for: model.visual.weight"),
    ],
    ids=["missing", "shape", "dtype", "stranger"],
)
def test_tensors_that_are_not_the_model(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    change_tensors(source, **changes)
    with pytest.raises(CompeteError, match=message):
        import_checkpoint(Import(source, tmp_path / "megatron"))
    assert not (tmp_path / "megatron").exists()
    assert list(tmp_path.iterdir()) == [source]  # nothing left over


@pytest.mark.parametrize("family", [name for name in hf_models.CONFIGS if name not in (*hf_models.DENSE, "nemotron_h")])
def test_fused_experts_are_the_same_model(family: str, tmp_path: Path) -> None:
    """transformers 5 writes all experts of a layer as one tensor with save_original_format=False, and loads either."""
    source = hf_models.save(tmp_path / "source", family, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert any(name.endswith("experts.gate_up_proj") for name in weights(tmp_path / "fused"))
    for name in ("source", "fused"):
        import_checkpoint(Import(tmp_path / name, tmp_path / f"from-{name}"))
    one, other = (TorchDistCheckpoint(find_checkpoint(tmp_path / f"from-{name}")) for name in ("source", "fused"))
    assert one.tensors.keys() == other.tensors.keys()
    for key in one.tensors:
        assert one.read(key).float().equal(other.read(key).float()), key


def test_experts_that_are_there_twice(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "qwen3_moe")
    change_tensors(source, model__layers__0__mlp__experts__gate_up_proj=torch.ones(4, 48, 32))
    with pytest.raises(CompeteError, match="which counts cannot be known"):
        import_checkpoint(Import(source, tmp_path / "megatron"))


def with_mtp(source: Path) -> Path:
    """As GLM-4.5 and DeepSeek-V3 are published: one more layer behind the last, with projection, norms and copies."""
    tensors = weights(source)
    layer = {
        name.replace("layers.1.", "layers.2."): value + 0.5 for name, value in tensors.items() if ".layers.1." in name
    }
    own = {
        "eh_proj.weight": torch.randn(32, 64),
        "enorm.weight": torch.rand(32),
        "hnorm.weight": torch.rand(32),
        "shared_head.norm.weight": torch.rand(32),
        "shared_head.head.weight": tensors["lm_head.weight"].clone(),
        "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    added = layer | {f"model.layers.2.{name}": value for name, value in own.items()}
    save_file(tensors | added, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_multi_token_prediction_there_and_back(family: str, tmp_path: Path) -> None:
    source = with_mtp(hf_models.save(tmp_path / "source", family))
    import_checkpoint(Import(source, tmp_path / "megatron"))
    saved = TorchDistCheckpoint(find_checkpoint(tmp_path / "megatron"))
    assert saved.arguments["mtp_num_layers"] == 1 and "mtp.layers.0.eh_proj.weight" in saved.tensors
    assert read_recipe(tmp_path / "megatron" / "recipe.yaml").arguments["mtp-num-layers"] == 1
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "back"))
    wanted, found = weights(source), weights(tmp_path / "back")
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    main(["--to", "hf", "--checkpoint", str(tmp_path / "megatron"), "--output", str(tmp_path / "less"), "--drop-mtp"])
    found = weights(tmp_path / "less")
    assert found.keys() == {name for name in wanted if ".layers.2." not in name}
    assert json.loads((tmp_path / "less" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_a_model_with_multi_token_prediction_computes_the_same(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "glm4_moe")
    wanted = hf_models.logits(source)
    import_checkpoint(Import(with_mtp(source), tmp_path / "megatron"))
    torch.testing.assert_close(run_rank(megatron_logits, str(tmp_path / "megatron")), wanted, atol=1e-4, rtol=0)


def test_multi_token_prediction_is_dropped_by_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = hf_models.save(tmp_path / "source", "glm4_moe")
    import_checkpoint(Import(source, tmp_path / "plain"))
    with_mtp(source)
    flags = ["--to", "megatron", "--checkpoint", str(source), "--output", str(tmp_path / "megatron")]
    main([*flags, "--drop-mtp"])
    assert "tensors for multi-token prediction, as transformers does" in capsys.readouterr().out
    one, other = (TorchDistCheckpoint(find_checkpoint(tmp_path / name)) for name in ("plain", "megatron"))
    assert one.tensors == other.tensors
    assert all(one.read(key).equal(other.read(key)) for key in one.tensors)
    with pytest.raises(CompeteError, match="--drop-mtp is of a Hugging Face folder"):
        main([*flags, "--from", "megatron", "--upcycle-experts", "2", "--drop-mtp"])


def test_multi_token_prediction_that_megatron_has_no_place_for(tmp_path: Path) -> None:
    source = with_mtp(hf_models.save(tmp_path / "source", "qwen3_moe"))
    with pytest.raises(CompeteError, match=r"tensors for multi-token prediction .* give --drop-mtp to leave them out"):
        import_checkpoint(Import(source, tmp_path / "megatron"))
    source = with_mtp(hf_models.save(tmp_path / "other", "glm4_moe"))
    change_tensors(source, model__layers__2__embed_tokens__weight=torch.ones(hf_models.VOCAB, 32))
    with pytest.raises(
        CompeteError, match=r"layers.2.embed_tokens.weight is not model.embed_tokens.weight.* --drop-mtp"
    ):
        import_checkpoint(Import(source, tmp_path / "megatron"))
    change_tensors(source, model__layers__2__embed_tokens__weight=None)
    import_checkpoint(Import(source, tmp_path / "megatron"))


def test_dtypes_that_differ_are_kept_and_said(tmp_path: Path) -> None:
    """fp32 norms and routers in a bf16 model; keys in another precision than queries, which are one tensor in Megatron."""
    source = hf_models.save(tmp_path / "source", "mixtral", torch.bfloat16)
    for name, value in weights(source).items():
        if "norm" in name or name.endswith(("block_sparse_moe.gate.weight", "layers.0.self_attn.k_proj.weight")):
            change_tensors(source, **{name.replace(".", "__"): value.float() + 1e-6})
    imported = import_checkpoint(Import(source, tmp_path / "megatron"))
    assert "stored as bfloat16 (0.1 MB), float32 (0.0 MB), and kept so" in str(imported)
    export_to_hf(Export(tmp_path / "megatron", tmp_path / "back"))
    wanted, found = weights(source), weights(tmp_path / "back")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].float().equal(value.float()), name
        if "self_attn" not in name:
            assert found[name].dtype == value.dtype, name
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: name.removeprefix("model."), "a model without a head, load it with AutoModelForCausalLM"),
        (lambda name: "base_model.model." + name, r"named base_model\.model\.\.\.\., as a wrapper saves them"),
        (lambda name: "_orig_mod." + name, r"named _orig_mod\.\.\.\., as a wrapper saves them"),
    ],
    ids=["base", "peft", "compiled"],
)
def test_layouts_with_a_way_out(rename: Callable[[str], str], message: str, tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    save_file({rename(name): value for name, value in weights(source).items()}, source / "model.safetensors")
    with pytest.raises(CompeteError, match=message):
        import_checkpoint(Import(source, tmp_path / "megatron"))


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama")
    save_file({"x": torch.zeros(3)}, source / "adapter_model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"unsloth_version": "1"}))
    said = str(import_checkpoint(Import(source, tmp_path / "megatron")))
    assert "note: passed over adapter_model.safetensors: not of the model" in said
    assert "note: passed over in config.json: unsloth_version" in said


def test_a_tied_head_that_is_stored_has_to_be_the_embedding(tmp_path: Path) -> None:
    source = hf_models.save(tmp_path / "source", "llama", tie_word_embeddings=True)
    embedding = weights(source)["model.embed_tokens.weight"]
    change_tensors(
        source, lm_head__weight=embedding.clone(), model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)
    )
    import_checkpoint(Import(source, tmp_path / "megatron"))
    change_tensors(source, lm_head__weight=embedding + 1)
    with pytest.raises(CompeteError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        import_checkpoint(Import(source, tmp_path / "other"))


def test_megatron_to_megatron_without_upcycling(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="nothing to convert without --upcycle-experts"):
        import_checkpoint(Import(tmp_path / "none", tmp_path / "out", source="megatron"))
