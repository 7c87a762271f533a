"""Real checkpoints of a tiny GPT model, exported and loaded as a user would."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_compete.checkpoint import export as export_module
from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.output import SENTINEL
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.cli.convert import main
from megatron_compete.common.errors import CompeteError
from tests.checkpoint import gpt
from tests.ranks import run_rank, run_ranks

Saved = tuple[Path, torch.Tensor]


def exported_logits(folder: Path) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "MixtralForCausalLM"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model.eval()(gpt.tokens()).logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def exported(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "hf"
    result = export_to_hf(Export(saved[0], output))
    assert result.compared is None
    assert result.files == 1
    return output


def test_logits_are_megatrons(saved: Saved, exported: Path) -> None:
    logits = exported_logits(exported)
    assert logits.shape == (4, 20, gpt.VOCAB)
    assert saved[1].std() > 0.3
    torch.testing.assert_close(logits, saved[1][..., : gpt.VOCAB], atol=1e-4, rtol=0)


LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "tp2-pp2-ep2": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 2,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
        },
    ),
    "pp2-vpp2": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    "etp2": (2, {"expert_tensor_parallel_size": 2}),
}


@pytest.mark.parametrize(
    "layout", ["tp2-pp2-ep2", pytest.param("pp2-vpp2", marks=pytest.mark.slow), "etp2"]
)  # families/test_parity.py has pp2-vpp2 for every family
def test_the_layout_that_saved_does_not_matter(saved: Saved, exported: Path, tmp_path: Path, layout: str) -> None:
    size, groups = LAYOUTS[layout]
    run_ranks(size, gpt.resave, str(saved[0] / "iter_0000007"), str(tmp_path / "saved"), groups)
    export_to_hf(Export(tmp_path / "saved", tmp_path / "hf"))
    wanted, found = weights(exported), weights(tmp_path / "hf")
    assert wanted.keys() == found.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_a_key_for_every_expert(saved: Saved, exported: Path, tmp_path: Path) -> None:
    run_rank(gpt.resave, str(saved[0] / "iter_0000007"), str(tmp_path / "saved"), {}, True)
    stored = TorchDistCheckpoint(tmp_path / "saved" / "iter_0000007").tensors
    assert "decoder.layers.0.mlp.experts.experts.3.linear_fc1.weight_w" in stored
    export_to_hf(Export(tmp_path / "saved", tmp_path / "hf"))
    wanted, found = weights(exported), weights(tmp_path / "hf")
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_tied_embeddings_and_a_key_for_every_layer(tmp_path: Path) -> None:
    logits = run_rank(gpt.save, str(tmp_path / "saved"), True, True)
    export_to_hf(Export(tmp_path / "saved", tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"]
    torch.testing.assert_close(exported_logits(tmp_path / "hf"), logits[..., : gpt.VOCAB], atol=1e-4, rtol=0)


def test_shards(saved: Saved, exported: Path, tmp_path: Path) -> None:
    result = export_to_hf(Export(saved[0], tmp_path / "hf", max_shard_bytes=100_000))
    assert result.files > 2
    assert weights(tmp_path / "hf").keys() == weights(exported).keys()
    assert exported_logits(tmp_path / "hf").equal(exported_logits(exported))


def test_with_a_tokenizer(saved: Saved, train_model: Callable[..., Path], tmp_path: Path) -> None:
    # 256 bytes and three special pieces are more than the model's rows.
    model = train_model(vocab_size=230, byte_fallback=False)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "import os"}\n')
    result = export_to_hf(Export(saved[0], tmp_path / "hf", tokenizer_model=model, verify_text=text))
    assert result.compared is not None and result.compared > 2000
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (230, 1, 2)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    assert len(tokenizer) == 230
    assert weights(tmp_path / "hf")["lm_head.weight"].shape[0] == 230


def test_a_tokenizer_of_another_model_is_refused(
    saved: Saved, train_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = train_model(vocab_size=120, byte_fallback=False)
    with pytest.raises(CompeteError, match="has 120 ids, which does not make the model's 256 rows"):
        export_to_hf(Export(saved[0], tmp_path / "hf", tokenizer_model=model))
    model = train_model()
    with pytest.raises(CompeteError, match="has 700 ids"):
        export_to_hf(Export(saved[0], tmp_path / "hf", tokenizer_model=model))


def test_the_command(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--to", "hf", "--checkpoint", str(saved[0]), "--output", str(tmp_path / "deep" / "hf")]
    main(arguments)
    assert "no tokenizer" in capsys.readouterr().out
    with pytest.raises(CompeteError, match="exists: choose another folder, or replace it"):
        main([*arguments, "--dtype", "bfloat16"])
    main([*arguments, "--force"])
    assert sorted(path.name for path in (tmp_path / "deep" / "hf").iterdir()) == [
        SENTINEL,
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["hf"]


def test_the_same_command_again_has_nothing_to_do(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that was stopped between its last file and its end is run again without --force."""
    output = tmp_path / "hf"
    arguments = ["--to", "hf", "--checkpoint", str(saved[0]), "--output", str(output)]
    main(arguments)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    main(arguments)
    assert "is there already, made from the same checkpoint" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before
    (output / "config.json").unlink()
    with pytest.raises(CompeteError, match="exists: choose another folder"):
        main(arguments)


def test_a_named_family_and_dtype(saved: Saved, tmp_path: Path) -> None:
    arguments = ["--to", "hf", "--checkpoint", str(saved[0]), "--output", str(tmp_path / "hf"), "--family"]
    main([*arguments, "competesmoe"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    assert type(model).__name__ == "CompeteSMoEForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(model(gpt.tokens()).logits, saved[1][..., : gpt.VOCAB], atol=1e-4, rtol=0)
    with pytest.raises(CompeteError, match=r"--qk-layernorm .*, which Qwen3-MoE cannot represent"):
        main([*arguments, "qwen3_moe", "--force"])
    main([*arguments, "mixtral", "--force", "--dtype", "bfloat16"])
    assert {tensor.dtype for tensor in weights(tmp_path / "hf").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (tmp_path / "hf" / "modeling_competesmoe.py").exists()


def test_the_tool_says_one_line(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
    command = [sys.executable, str(tool), "--to", "hf", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --checkpoint")
    assert done.stderr.count("\n") == 1


def test_nothing_is_left_of_a_failed_export(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise CompeteError("the disk is full")

    monkeypatch.setattr(export_module, "write_safetensors", fail)
    with pytest.raises(CompeteError, match="the disk is full"):
        export_to_hf(Export(saved[0], tmp_path / "hf"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_one(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "hf"
    export_to_hf(Export(saved[0], output))
    before = weights(output)
    monkeypatch.setattr(export_module, "write_safetensors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_to_hf(Export(saved[0], output, force=True))
    assert weights(output).keys() == before.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_force_replaces_exports_alone(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(CompeteError, match="is not an earlier conversion"):
        export_to_hf(Export(saved[0], tmp_path / "mine", force=True))
    with pytest.raises(CompeteError, match="holds the checkpoint"):
        export_to_hf(Export(saved[0] / "iter_0000007", saved[0], force=True))


def test_tokenizers_that_cannot_be_converted(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"tokenizer_type": "GPT2BPETokenizer"}
    original = TorchDistCheckpoint.__init__

    def with_arguments(self: TorchDistCheckpoint, folder: Path) -> None:
        original(self, folder)
        self.arguments.update(arguments)

    monkeypatch.setattr(TorchDistCheckpoint, "__init__", with_arguments)
    with pytest.raises(CompeteError, match=r"--tokenizer-type GPT2BPETokenizer.* --no-tokenizer"):
        export_to_hf(Export(saved[0], tmp_path / "hf"))
    assert export_to_hf(Export(saved[0], tmp_path / "hf", no_tokenizer=True)).compared is None
    arguments |= {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "/nowhere/t.model"}
    with pytest.raises(CompeteError, match=r"t\.model cannot be read .* --tokenizer-model"):
        export_to_hf(Export(saved[0], tmp_path / "other"))
    arguments |= {"special_tokens": ["<a>"]}
    with pytest.raises(CompeteError, match="--special-tokens"):
        export_to_hf(Export(saved[0], tmp_path / "other"))
    arguments |= {"rotary_interleaved": True}
    with pytest.raises(CompeteError, match=r"--rotary-interleaved True, which .* cannot represent"):
        export_to_hf(Export(saved[0], tmp_path / "other"))


def test_the_output_is_readable_as_the_umask_says(saved: Saved, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        export_to_hf(Export(saved[0], tmp_path / "hf"))
    finally:
        os.umask(old)
    assert (tmp_path / "hf").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "hf").iterdir()} == {0o640}
