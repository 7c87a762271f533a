"""`tools/verify_checkpoint.py`: damage is named before anything is built, and two models are compared on text."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_compete.checkpoint.export import Export, export_to_hf
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.restricted import load_metadata
from megatron_compete.cli.convert import main as convert
from megatron_compete.common.errors import CompeteError
from megatron_compete.verify.command import main
from megatron_compete.verify.conversion import _Totals, windows
from megatron_compete.verify.single import refuse_code
from tests.checkpoint import hf_models
from tests.checkpoint.conftest import saved, train_model  # noqa: F401  fixtures
from tests.ranks import run_rank


def on_a_rank(command: list[str], run: Callable[[list[str]], None] = main) -> str:
    """What the command prints, or the error it ends with."""
    import contextlib
    import io

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(command)
    except CompeteError as error:
        return f"{said.getvalue()}error: {error}"
    return said.getvalue()


@pytest.fixture(scope="module")
def imported(train_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A Hugging Face model with a real tokenizer, and its import beside it."""
    from megatron_compete.checkpoint.tokenizer import read_sentencepiece, write_tokenizer

    folder = tmp_path_factory.mktemp("verified")
    source = hf_models.save(folder / "hf", "llama", vocab_size=700, max_position_embeddings=64)
    write_tokenizer(read_sentencepiece(train_model()), source, 64)
    convert(["--to", "megatron", "--checkpoint", str(source), "--output", str(folder / "dense")])
    convert(
        ["--to", "megatron", "--checkpoint", str(source), "--output", str(folder / "moe"), "--upcycle-experts", "4"]
    )
    (folder / "text.txt").write_text(Path(__file__).read_text())
    return folder


@pytest.mark.parametrize("to", ("hf", "megatron"))
def test_a_conversion_is_verified_in_the_same_command(imported: Path, tmp_path: Path, to: str) -> None:
    checkpoint = imported / ("dense" if to == "hf" else "hf")
    said = run_rank(
        on_a_rank,
        ["--to", to, "--checkpoint", str(checkpoint), "--output", str(tmp_path / "converted"),
         "--verify", str(imported / "text.txt")],
        convert,
    )  # fmt: skip
    assert "error: " not in said, said
    assert "same preferred token      100.00%" in said and "same token ids            yes" in said


def test_an_import_and_an_upcycled_model_are_the_same_model(imported: Path, tmp_path: Path) -> None:
    for name in ("dense", "moe"):
        report = tmp_path / f"{name}.json"
        said = run_rank(
            on_a_rank,
            ["--checkpoint", str(imported / name), "--hf", str(imported / "hf"), "--text", str(imported / "text.txt"),
             "--tolerance", "1e-4", "--windows", "4", "--length", "32", "--json", str(report)],
        )  # fmt: skip
        assert "error: " not in said, said
        for row in ("largest logit difference", "mean logit difference", "same preferred token", "100.00%"):
            assert row in said, said
        found = json.loads(report.read_text())
        assert found["tokens"] == 4 * 32
        assert found["max_logit_difference"] < 1e-4 and found["top1_agreement"] == 1.0 and found["same_ids"]


def test_another_model_fails(imported: Path, tmp_path: Path) -> None:
    other = hf_models.save(tmp_path / "other", "llama", vocab_size=700, rms_norm_eps=1e-2)
    for path in (imported / "hf").glob("*token*"):
        (other / path.name).write_bytes(path.read_bytes())
    command = ["--checkpoint", str(imported / "dense"), "--hf", str(other), "--text", str(imported / "text.txt")]
    said = run_rank(on_a_rank, [*command, "--windows", "2", "--length", "32"])
    assert "error: " in said and "more than --tolerance 0.001" in said


def with_value(folder: Path, target: Path, value: float) -> Path:
    """A copy of a model of which one weight has `value`."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_weight_that_is_no_number_fails(imported: Path, tmp_path: Path) -> None:
    """On one side alone, where max(0.0, nan) was 0, and on both, where two models that say nothing were equal."""
    report, broken = tmp_path / "report.json", with_value(imported / "hf", tmp_path / "hf", math.nan)
    report.write_text("{}")
    text = ["--text", str(imported / "text.txt"), "--windows", "2", "--length", "32", "--json", str(report)]
    said = run_rank(on_a_rank, ["--checkpoint", str(imported / "dense"), "--hf", str(broken), *text])
    assert "error: logits of --hf: " in said and "values are infinite or not numbers" in said
    assert not report.exists()  # an earlier comparison's
    convert(["--to", "megatron", "--checkpoint", str(broken), "--output", str(tmp_path / "megatron")])
    said = run_rank(on_a_rank, ["--checkpoint", str(tmp_path / "megatron"), "--hf", str(broken), *text])
    assert "error: logits of --checkpoint: " in said and "values are infinite or not numbers" in said


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_a_conversion_of_a_weight_that_is_no_number_is_not_verified(
    imported: Path, tmp_path: Path, value: float
) -> None:
    broken = with_value(imported / "hf", tmp_path / "hf", value)
    command = ["--to", "megatron", "--checkpoint", str(broken), "--output", str(tmp_path / "converted")]
    said = run_rank(on_a_rank, [*command, "--verify", str(imported / "text.txt")], convert)
    assert "error: logits of --checkpoint: " in said and "values are infinite or not numbers" in said


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_totals_of_what_cannot_be_compared(value: float) -> None:
    targets, ours = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3, 5)
    theirs = ours.clone()
    theirs[1, 1, 1] = value
    for one, other, whose in ((ours, theirs, "--hf"), (theirs, ours, "--checkpoint"), (theirs, theirs, "--checkpoint")):
        with pytest.raises(CompeteError, match=f"logits of {whose}: 1 of 30 values are infinite or not numbers"):
            _Totals().add(targets, one, other, untrained=ours)
    with pytest.raises(CompeteError, match="shapes"):
        _Totals().add(targets, ours, ours[..., :4], untrained=ours)


def test_a_model_with_fewer_ids_than_the_tokenizer_gives(imported: Path, tmp_path: Path) -> None:
    other = hf_models.save(tmp_path / "other", "llama", vocab_size=300)
    for path in (imported / "hf").glob("*token*"):
        (other / path.name).write_bytes(path.read_bytes())
    command = ["--checkpoint", str(imported / "dense"), "--hf", str(other), "--text", str(imported / "text.txt")]
    said = run_rank(on_a_rank, command)
    assert "other embeds 300 ids, and the training tokenizer gives the text id" in said


def test_files_alone(saved: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    export_to_hf(Export(saved[0], tmp_path / "hf", max_shard_bytes=40_000))
    main(["--checkpoint", str(saved[0]), "--hf", str(tmp_path / "hf"), "--read"])
    assert capsys.readouterr().out.count(": whole; ") == 2
    shard = sorted((tmp_path / "hf").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CompeteError, match=f"{shard.name} is cut short"):
        main(["--hf", str(tmp_path / "hf")])
    assert "1 problem" in capsys.readouterr().out


def test_no_code_is_run_on_a_checkpoints_word() -> None:
    refuse_code({"trust_remote_code": False, "spec": None}, "x", trust_remote_code=False)
    refuse_code({"trust_remote_code": True}, "x", trust_remote_code=True)
    for saved_arguments, words in (
        ({"trust_remote_code": True, "tokenizer_model": "some/hub"}, "code of its tokenizer, some/hub, is not run"),
        ({"spec": ["os", "system"]}, r"trained with --spec \['os', 'system'\], code that is not imported"),
        ({"fp8_quantizer_factory": "os.system"}, "--fp8-quantizer-factory os.system"),
    ):
        with pytest.raises(CompeteError, match=words):
            refuse_code(saved_arguments, "x", trust_remote_code=False)


def test_objects_in_a_checkpoint_are_not_unpickled(imported: Path, tmp_path: Path) -> None:
    shutil.copytree(imported / "dense", tmp_path / "evil")
    folder = find_checkpoint(tmp_path / "evil")
    evil = pickle.dumps(_Touch(tmp_path / "was-run"))
    index = load_metadata(folder / ".metadata")
    objects = [info for entry, info in index.storage_data.items() if "_extra_state" in entry.fqn]
    assert objects
    for info in objects:
        with (folder / info.relative_path).open("r+b") as stream:
            stream.seek(info.offset)
            stream.write(evil)
    command = ["--checkpoint", str(tmp_path / "evil"), "--hf", str(imported / "hf")]
    said = run_rank(on_a_rank, [*command, "--text", str(imported / "text.txt"), "--windows", "2", "--length", "32"])
    assert "same preferred token      100.00%" in said
    assert not (tmp_path / "was-run").exists()


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return _touch, (str(self._path),)


def _touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "t.txt", "holds no text"),
        (" \n\n", "t.txt", "holds no text"),
        ("", "t.jsonl", "holds no text"),
        ('{"text": ""}\n', "t.jsonl", "holds no text"),
        ('{"txt": "a"}\n', "t.jsonl", "line 1 is not a JSON object"),
        ('{"text": "a"}\n{"text": 5}', "t.jsonl", "line 2 is not a JSON object"),
        ("[" * 100_000, "t.jsonl", "line 1 is not a JSON object"),
    ],
    ids=str,
)
def test_texts_on_which_nothing_would_be_compared(tmp_path: Path, content: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CompeteError, match=message):
        main(["--checkpoint", "x", "--hf", "y", "--text", str(tmp_path / name)])


@pytest.mark.parametrize(
    "flag", ["--windows=0", "--windows=-1", "--length=0", "--tolerance=nan", "--tolerance=inf", "--tolerance=-1"]
)
def test_settings_under_which_nothing_would_be_compared(flag: str) -> None:
    with pytest.raises(CompeteError, match=flag.partition("=")[0]):
        main(["--checkpoint", "x", "--hf", "y", "--text", "z", flag])


def test_what_is_missing_is_said() -> None:
    with pytest.raises(CompeteError, match="give --checkpoint, --hf, or both"):
        main([])
    with pytest.raises(CompeteError, match="give both --checkpoint and --hf"):
        main(["--hf", "x", "--text", "y"])
    with pytest.raises(CompeteError, match="--json z holds what --text finds"):
        main(["--hf", "x", "--json", "z"])


def test_windows() -> None:
    found = windows([list(range(10)), list(range(100, 103))], 4, 8)
    assert found.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    with pytest.raises(CompeteError, match="shorter than one sequence of 6 tokens"):
        windows([[1, 2, 3]], 5, 8)
