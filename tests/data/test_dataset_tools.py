"""The scripts around finished datasets, as a user runs them."""

from pathlib import Path

from tests.data.datasets import random_documents, write_dataset
from tests.data.test_commands import run_tool


def test_one_line_for_a_fault_and_nothing_but_results_otherwise(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", random_documents(30))
    split = ["split_dataset.py", "--input", "a", "--output-prefix", "s", "--parts", "x=0.5", "y=0.5"]
    merge = ["merge_datasets.py", "--input", "s_x", "s_y", "--output-prefix", "m"]
    blend = ["make_blend.py", "--input", "s_x", "s_y", "--tokens", "1e6"]
    for command in (split, merge, blend, ["inspect_dataset.py", "m"]):
        done = run_tool(*command, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (tmp_path / "s_x.bin").write_bytes(b"")
    for command in (merge, blend):
        done = run_tool(*command, folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: s_x.bin has 0 bytes where") and done.stderr.count("\n") == 1
    done = run_tool("inspect_dataset.py", "s_x", folder=tmp_path)
    assert done.returncode == 1 and "damaged: s_x.bin has 0 bytes" in done.stdout
