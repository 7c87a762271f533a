import os
import subprocess
from pathlib import Path

import pytest

from megatron_compete.cluster.env_file import read_env_file
from megatron_compete.cluster.settings import DEFAULTS, KEYS, VARIABLES, Settings, find_settings, settings_to_keep
from megatron_compete.common.errors import CompeteError
from tests.cluster.stand_in import ROOT

EXAMPLE = ROOT / "slurm" / "cluster.env.example"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.env"
    path.write_text(text)
    return path


def test_the_example_explains_every_key_and_can_be_used(tmp_path: Path) -> None:
    lines = [line.removeprefix("#") for line in EXAMPLE.read_text().splitlines()]
    all_set = write(tmp_path, "\n".join(line for line in lines if line.startswith(("COMPETE_", "NCCL", "UCX", "HF_"))))
    values = read_env_file(all_set)
    assert {key for key in values if key.startswith("COMPETE_")} == set(KEYS) - {VARIABLES}
    settings = Settings.of(values)
    assert {key: settings.values[key] for key in DEFAULTS} == DEFAULTS  # what it shows are the defaults
    assert Settings.of(read_env_file(EXAMPLE)).gpus_per_node == 8


def test_what_bash_reads_back_is_what_was_set(tmp_path: Path) -> None:
    values = {
        "COMPETE_SBATCH": "--comment='a b' --exclusive",
        "NCCL_X": '$HOME `ls` "q" é',
        "COMPETE_MOUNTS": "/a:/b,/c",
    }
    path = write(tmp_path, Settings.of(values).text())
    shown = subprocess.run(
        ["bash", "-c", f"set -a; . {path}; env -0"], env={}, capture_output=True, text=True, check=True
    )
    read = dict(one.split("=", 1) for one in shown.stdout.split("\0") if one)
    assert {key: read[key] for key in values} == values
    assert read["COMPETE_MAX_FAILURES"] == "3"


def test_layers_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    text = "# a comment\nexport COMPETE_VENV=$SCRATCH/venv # and another\n\nCOMPETE_QOS='$low'\nCOMPETE_TIME=30\nA=\"b c\"\n"
    values = read_env_file(write(tmp_path, text))
    assert values == {"COMPETE_VENV": "/scratch/me/venv", "COMPETE_QOS": "$low", "COMPETE_TIME": "30", "A": "b c"}
    settings = Settings.of(values, {"COMPETE_TIME": "1:00:00", "COMPETE_QOS": ""})
    assert settings.get("TIME") == "1:00:00" and settings.get("QOS") is None and settings.values["A"] == "b c"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("COMPETE_PARTITON=gpu", r"COMPETE_PARTITON is no setting \(did you mean COMPETE_PARTITION\?\)"),
        ("COMPETE_GPUS_PER_NODE=eight", "give a whole number from 0"),
        ("COMPETE_TASKS_PER_NODE=0", "give a whole number from 1"),
        (f"COMPETE_TASKS_PER_NODE={'1' * 5000}", "=1{40}: give a whole number from 1"),
        ("COMPETE_SOFTWARE=conda", "choose one of venv, pyxis, apptainer"),
        ("COMPETE_LAUNCHER=ssh", "choose one of torchrun, srun, mpirun"),
        ("COMPETE_TIME=tomorrow", "COMPETE_TIME: tomorrow is no time limit"),
        ("COMPETE_MOUNTS=data:/data", "'data:/data' is no mount"),
        ('COMPETE_SBATCH="--mem 0"', "'0' is no option, write --name=value"),
        ("COMPETE_QOS=high priority", "cluster.env:1: COMPETE_QOS is no KEY=value"),
        ("COMPETE_QOS", "begins no KEY=value"),
        ('COMPETE_QOS="high', "cluster.env:1: COMPETE_QOS: a quote is not closed"),
        ("COMPETE_VENV=$NOT_SET_ANYWHERE/x", "names a variable that is not set"),
        ("COMPETE_VENV=$(pwd)/x", "outside of quotes, which bash would act on"),
        ('COMPETE_VENV="$(pwd)/x"', "nothing is run here"),
        ("A=1\nA=2", "cluster.env:2: A was set before"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(CompeteError, match=says):
        Settings.of(read_env_file(write(tmp_path, line)))


def test_ranks_of_a_node() -> None:
    assert Settings.of({"COMPETE_GPUS_PER_NODE": "8"}).tasks_per_node == 8
    assert Settings.of({"COMPETE_GPUS_PER_NODE": "8", "COMPETE_TASKS_PER_NODE": "4"}).tasks_per_node == 4
    with pytest.raises(CompeteError, match="COMPETE_TASKS_PER_NODE"):
        _ = Settings.of({"COMPETE_GPUS_PER_NODE": "0"}).tasks_per_node
    assert Settings.of({}).with_gpus_of({"nproc-per-node": 4}).gpus_per_node == 4
    assert Settings.of({"COMPETE_GPUS_PER_NODE": "0"}).with_gpus_of({"nproc-per-node": 4}).gpus_per_node == 0


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("COMPETE_CLUSTER", raising=False)
    assert find_settings(None) is None
    own = tmp_path / "config" / "megatron-compete" / "cluster.env"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_settings(None) == own
    write(tmp_path, "")
    assert find_settings(None) == Path("cluster.env")
    monkeypatch.setenv("COMPETE_CLUSTER", str(own))
    assert find_settings(None) == own
    assert find_settings(tmp_path / "cluster.env") == tmp_path / "cluster.env"
    with pytest.raises(CompeteError, match="--cluster nowhere: no such file"):
        find_settings(Path("nowhere"))
    monkeypatch.setenv("COMPETE_CLUSTER", os.devnull + "x")
    with pytest.raises(CompeteError, match=r"\$COMPETE_CLUSTER"):
        find_settings(None)


LINES = """\
# a user's comment, with a quote that isn't one
COMPETE_ACCOUNT=mine # it's ours
A=$HOME/a   # don't
B='$HOME/`a`'
C="$A b: ~/c \\"d\\" \\$A \\x"
D=~/bin:$A:~/lib
E=a\\ b\\;c"'"'"'
export F=${A}x'y'"z"
  G=
H=a#b
I="it's"
"""


def test_bash_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes and apostrophes, comments, variables of the lines above, home folders."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("A", "of the environment")
    path = write(tmp_path, LINES)
    shown = subprocess.run(
        ["bash", "-c", f"set -a; . {path}; env -0"],
        env={"HOME": "/home/me"},
        capture_output=True,
        text=True,
        check=True,
    )
    read = dict(one.split("=", 1) for one in shown.stdout.split("\0") if one)
    values = read_env_file(path)
    assert values == {key: read[key] for key in values} and set("ABCDEFGHI") < set(values)
    assert values["COMPETE_ACCOUNT"] == "mine" and values["A"] == "/home/me/a" and values["I"] == "it's"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"A=1\r\nB=2\r\n", "cluster.env:1: has Windows line ends"),
        (b"A=1\nB=\xff\n", "cluster.env:2: is not UTF-8"),
        (b"A=1\nB=a\x00b\n", "cluster.env:2: has control characters"),
        (b"A=b;rm -rf x\n", "cluster.env:1: A: has one of ; &"),
        (b"A=b>c\n", "cluster.env:1: A: has one of ; &"),
        (b"A=b\\\nc\n", "cluster.env:1: A: a quote is not closed, or the line goes on"),
        (b"A=${B:-c}\n", "cluster.env:1: A: only .NAME and"),
        (b"COMPETE_VARIABLES=/x\n", "COMPETE_VARIABLES is written by submit"),
        (b"if true; then A=1; fi\n", "begins no KEY=value"),
    ],
)
def test_what_bash_would_read_otherwise_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "cluster.env").write_bytes(data)
    with pytest.raises(CompeteError, match=says):
        settings_to_keep(tmp_path / "cluster.env")


def test_no_error_shows_a_value_that_may_be_a_token(tmp_path: Path) -> None:
    for line in (
        "HF_TOKEN=hf_secret more",
        "HF_TOKEN='hf_secret",
        "HF_TOKEN=hf_secret;",
        "HF_TOKEN=hf_secret$(",
        "HF TOKEN=hf_secret",
    ):
        with pytest.raises(CompeteError) as error:
            settings_to_keep(write(tmp_path, line))
        assert "hf_secret" not in str(error.value)


def test_variables_of_the_ranks_are_not_copied(tmp_path: Path) -> None:
    path = write(tmp_path, "COMPETE_QOS=low\nWANDB_API_KEY=secret\n")
    assert settings_to_keep(path) == {"COMPETE_QOS": "low", VARIABLES: str(path)}
    assert settings_to_keep(write(tmp_path, "COMPETE_QOS=low\n")) == {"COMPETE_QOS": "low"}
