import json
import re
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.inspect_conversations import main
from tests.data.conversations.tiny import mixed_dataset, sample, save_pictures, tokenizer, write_json

SIZES = ["--img-h", "28", "--img-w", "28", "--conversation-workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(path)
    return str(path)


def test_what_data_hold(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, images = mixed_dataset(tmp_path)
    main(
        [
            file,
            "--tokenizer-model",
            folder,
            "--image-folder",
            str(images),
            "--seq-length",
            "200",
            *SIZES,
            "--show",
            "1",
            "-1",
        ]
    )
    said = capsys.readouterr().out
    assert said.startswith(
        f"{file}: 14 samples\n14 samples (9 with images, 5 without), 10 images in 10 tiles, 776 positions\n"
    )
    assert "questions a sample: 13 with 1, 1 with 2\n" in said
    assert "positions a sample: 42 to 96, mean 55.4, 27.7% of --seq-length 200\n" in said
    assert re.search(r"packed \(--pack-conversations\): 5 sequences, 77.6% full", said)
    shown = said[said.index("--- sample 1") :]
    assert shown.startswith("--- sample 1, 65 positions, 0.png (1 tiles), 1.png (1 tiles)\n<|im_start|>system")
    assert "«nononononononononono<|im_end|>»" not in shown and f"assistant\n«{'no' * 9}<|im_end|>»\n" in shown
    assert "--- sample 13, " in shown and "«word word word word word <|im_end|>»" in shown


def test_what_cannot_be_used(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pictures(tmp_path / "images", 1)
    file = write_json(
        tmp_path / "data.json", [sample("a", "0.png"), sample("b", "1.png"), sample("c", "0.png", "no token", "x")]
    )
    report = tmp_path / "bad.json"
    words = [file, "--tokenizer-model", folder, "--image-folder", str(tmp_path / "images"), *SIZES]
    with pytest.raises(SystemExit) as exit:
        main([*words, "--report", str(report)])
    said = capsys.readouterr().out
    assert exit.value.code == 1 and "bad: 2 of 3 samples (1 missing_image, 1 image_count)\n" in said
    assert (
        f"bad: missing_image, an image that is not in the image folder, or an empty file: 1: {file}: sample 1 (id b): no"
        in said
    )
    assert [one["id"] for one in json.loads(report.read_text())["findings"]] == ["b", "c"]
    with pytest.raises(CompeteError, match=r"--show 1: there are 1 usable samples, 0 to 0"):
        main([*words, "--show", "1"])


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=f"--tokenizer-model {tmp_path} cannot be read: "):
        main(["data.json", "--tokenizer-model", str(tmp_path), *SIZES])
