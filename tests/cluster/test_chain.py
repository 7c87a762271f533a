"""Chain files: what each part becomes, and what one hands to the next."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_compete.cluster.chain import plan_chain
from megatron_compete.cluster.chain_file import read_chain
from megatron_compete.cluster.planned_job import PlannedJob
from megatron_compete.cluster.snapshot import Snapshot
from megatron_compete.common.errors import CompeteError
from tests.cluster.stand_in import MODEL, ROOT

SETTINGS = {"COMPETE_GPUS_PER_NODE": "8", "COMPETE_PARTITION": "gpu", "COMPETE_VENV": "/v"}
Planner = Callable[..., list[PlannedJob]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    monkeypatch.chdir(tmp_path)
    for name in ("raw.jsonl", "held.jsonl"):
        Path(name).touch()
    own = {name: value for name, value in MODEL.items() if name not in ("mock-data", "tokenizer-type")}
    Path("small.yaml").write_text(yaml.safe_dump({"launch": {"nproc-per-node": 2}, "arguments": own}))

    def planned(content: object, *overrides: str, text: str | None = None) -> list[PlannedJob]:
        file = Path("chain.yaml")
        file.write_text(text or yaml.safe_dump(content, sort_keys=False))
        folder = tmp_path / "chain"
        return plan_chain(read_chain(file, folder), folder, SETTINGS, list(overrides), Snapshot({}, None))

    return planned


def sections(**changes: dict | None) -> dict:
    whole: dict[str, dict | None] = {
        "preprocess": {"tokenizer": {"vocab-size": 300}, "arguments": {"input": "raw.jsonl", "append-eod": True}},
        "pretrain": {"recipe": "small.yaml", "nodes": 2, "arguments": {"lr": 0.5}},
        "convert": None,
        "evaluate": {"arguments": {"text": "held.jsonl", "tasks": ["a", "b"]}},
    }
    return {kind: section for kind, section in (whole | changes).items() if section != {}}


def flag(planned: PlannedJob, name: str) -> str:
    words = list(planned.job.arguments)
    return words[words.index(f"--{name}") + 1]


def test_everything_flows_from_one_part_to_the_next(plan: Planner, tmp_path: Path) -> None:
    preprocess, pretrain, convert, evaluate = plan(sections(), "--train-iters", "7")
    chain = tmp_path / "chain"
    assert [planned.folder.path.name for planned in (preprocess, pretrain, convert, evaluate)] == [
        "1-preprocess", "2-pretrain", "3-convert", "4-evaluate",
    ]  # fmt: skip
    words = list(preprocess.job.arguments)
    tokenizer, corpus = words[: words.index("--")], words[words.index("--") + 1 :]
    model = f"{chain}/1-preprocess/tokenizer/tokenizer.model"
    assert tokenizer[:2] == ["--vocab-size", "300"] and f"{tmp_path}/raw.jsonl" in tokenizer
    assert corpus[corpus.index("--tokenizer-model") + 1] == model and "--append-eod" in corpus
    assert pretrain.recipe is not None
    arguments = pretrain.recipe.arguments
    assert arguments["data-path"] == [f"{chain}/1-preprocess/data/corpus_text_document"]
    assert (arguments["tokenizer-type"], arguments["tokenizer-model"]) == ("SentencePieceTokenizer", model)
    assert (arguments["lr"], arguments["train-iters"]) == (0.5, "7")
    assert flag(convert, "checkpoint") == flag(evaluate, "checkpoint") == f"{chain}/2-pretrain/checkpoints"
    assert flag(convert, "output") == flag(evaluate, "hf") == f"{chain}/3-convert/hf"
    assert flag(evaluate, "tasks") == "a,b" and flag(evaluate, "text") == f"{tmp_path}/held.jsonl"


def test_tools_take_one_task_and_no_gpu_unless_they_say_more(plan: Planner) -> None:
    four = {"nodes": 4, "tasks-per-node": 2, "cluster": {"COMPETE_PARTITION": "cpu", "COMPETE_MPI": "pmix"}}
    preprocess, pretrain, convert, evaluate = plan(sections(preprocess=sections()["preprocess"] | four))
    gpus = [planned.job.settings.gpus_per_node for planned in (preprocess, pretrain, convert, evaluate)]
    tasks = [planned.job.settings.tasks_per_node for planned in (preprocess, pretrain, convert, evaluate)]
    assert gpus == [0, 8, 0, 1] and tasks == [2, 8, 1, 1] and preprocess.job.nodes == 4
    assert (preprocess.job.settings.get("PARTITION"), convert.job.settings.get("PARTITION")) == ("cpu", "gpu")


def test_a_part_that_is_left_out_is_named_instead(plan: Planner, tmp_path: Path) -> None:
    (tmp_path / "ck").mkdir()
    convert, evaluate = plan({"convert": {"arguments": {"checkpoint": "ck"}}, "evaluate": {}})
    assert convert.folder.path.name == "3-convert" and flag(convert, "checkpoint") == f"{tmp_path}/ck"
    assert flag(evaluate, "hf") == flag(convert, "output")
    own = {"tokenizer-type": "NullTokenizer", "vocab-size": 9, "input": "raw.jsonl", "output-prefix": "{chain}/d/x"}
    preprocess, pretrain = plan({"preprocess": {"arguments": own}, "pretrain": sections()["pretrain"]})
    assert flag(preprocess, "output-prefix") == f"{tmp_path}/chain/d/x" and "--" not in preprocess.job.arguments
    assert pretrain.recipe is not None
    assert pretrain.recipe.arguments["data-path"] == [f"{tmp_path}/chain/d/x_text_document"]
    assert pretrain.recipe.arguments["vocab-size"] == 9


def test_a_chain_replaces_nothing(plan: Planner, tmp_path: Path) -> None:
    """A conversion that a retry finds whole is done; one that is there and another is not the chain's to remove."""
    (tmp_path / "ck").mkdir()
    for more in ({}, {"output": "mine"}):
        convert, _ = plan({"convert": {"arguments": {"checkpoint": "ck"} | more}, "evaluate": {}})
        assert "--force" not in convert.job.arguments


def test_times_are_read_as_slurm_writes_them(plan: Planner) -> None:
    text = "convert: {time: 12:00:00, arguments: {checkpoint: .}}\nevaluate: {cluster: {COMPETE_TIME: 1:30:00}}\n"
    planned_jobs = plan(None, text=text)
    assert [planned.job.settings.get("TIME") for planned in planned_jobs] == ["12:00:00", "1:30:00"]
    assert "#SBATCH --time=12:00:00" in planned_jobs[0].contents.files["submit.sbatch"]
    assert plan(None, text="convert: {time: 20, arguments: {checkpoint: .}}\n")[0].job.settings.get("TIME") == "20"


def test_an_empty_setting_is_taken_back(plan: Planner) -> None:
    planned = plan(None, text="convert: {cluster: {COMPETE_PARTITION: }, time: , arguments: {checkpoint: .}}\n")[0]
    assert planned.job.settings.get("PARTITION") is None and planned.job.settings.get("TIME") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("convert:\n  time: 1\n  time: 2\n", ":3: time is given twice"),
        ("convert:\n  cluster: {COMPETE_QOS: [a]}\n", r":2: convert\.cluster\.COMPETE_QOS is \['a'\]: give text or a number"),
        ("convert:\n  cluster:\n    COMPETE_QOS: true\n", ":3: convert.cluster.COMPETE_QOS is True: give text"),
        ("convert:\n  nodes: yes\n", ":2: .*yes is true or false to some"),
        ("convert:\n  nodes: [1]\n", r":2: convert.nodes is \[1\]: give a valid integer"),
        ("convert:\n\n  arguments: {a: {b: c}}\n", ":3: a has a mapping as a value"),
        ("convert: false\n", ":1: convert is false, not a mapping"),
        ("pretrain:\n  recipe: {a: b}\n", ":2: pretrain.recipe is .*: give text or a number"),
    ],
)  # fmt: skip
def test_mistakes_have_their_line(plan: Planner, text: str, says: str) -> None:
    with pytest.raises(CompeteError, match=f"--chain chain.yaml{says}"):
        plan(None, text=text)


def test_object_storage_is_no_folder(plan: Planner) -> None:
    with pytest.raises(CompeteError, match="convert: arguments: output: s3://bucket/hf: object storage"):
        plan({"convert": {"arguments": {"checkpoint": ".", "output": "s3://bucket/hf"}}})


def test_a_setting_has_one_line(plan: Planner) -> None:
    """It becomes a line of #SBATCH, and one that bash reads."""
    with pytest.raises(CompeteError, match="'COMPETE_QOS' is no KEY=value on one line"):
        plan(None, text='convert: {cluster: {COMPETE_QOS: "a\\n#SBATCH --wait"}, arguments: {checkpoint: .}}\n')
    with pytest.raises(CompeteError, match="'a b' is no KEY=value"):
        plan(None, text="convert: {cluster: {a b: c}, arguments: {checkpoint: .}}\n")


def test_command_lines_name_the_tools(plan: Planner) -> None:
    commands = [planned.contents.files["command.txt"] for planned in plan(sections())]
    train, _, corpus = commands[0].partition(" && ")
    assert shlex.split(train)[1].endswith("code/tools/train_tokenizer.py")
    assert shlex.split(corpus)[1].endswith("code/tools/preprocess_data.py")
    assert commands[1].startswith("torchrun --nproc-per-node 8 --nnodes 2 -m megatron_compete.training.pretrain")
    assert all(command.count("\n") == 1 for command in commands)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preprocess": {"arguments": {"input": "raw.jsonl"}}}, "preprocess: no tokenizer"),
        ({"preprocess": {"tokenizer": {}, "arguments": {"input": "raw.jsonl"}}}, "vocab-size is missing"),
        ({"preprocess": {"tokenizer": {"vocab-size": 9}, "arguments": {"input": "gone.jsonl"}}}, "gone.jsonl: no such file"),
        ({"preprocess": {"tokenizer": {"vocab-size": 9}}}, "input is missing"),
        ({"preprocess": {"tokenizer": {"vocab-size": 9}, "arguments": {"input": "raw.jsonl", "tokenizer-type": "X"}}}, "keep one"),
        ({"preprocess": {"tokens": 3}}, "preprocess.tokens is no key here .did you mean tokenizer.*known are nodes, time"),
        ({"preprocess": {"nodes": 0}}, "preprocess.nodes is 0: give at least 1"),
        ({"preprocess": {"nodes": 2, **{"tokenizer": {"vocab-size": 9}, "arguments": {"input": "raw.jsonl"}}}}, "COMPETE_MPI"),
        ({"pretrain": {"nodes": 2}}, "pretrain: recipe is missing"),
        ({"pretrain": {"recipe": "small.yaml"}}, "pretrain: nodes: is missing"),
        ({"pretrain": {"recipe": "none.yaml", "nodes": 2}}, "--recipe none.yaml cannot be read"),
        ({"preprocess": {}}, "no training data"),
        ({"pretrain": {}}, "convert: no pretrain in the chain before it"),
        ({"convert": {}}, "evaluate: no convert in the chain before it"),
        ({"convert": {"arguments": {"to": "megatron"}}}, "a chain converts to hf"),
        ({"convert": {"cluster": {"COMPETE_TIM": 3}}}, "did you mean COMPETE_TIME"),
        ({"evaluate": {"arguments": {"task": "x"}}}, "evaluate: arguments: task is none of"),
        ({"evaluate": {"arguments": {"text": "gone.jsonl"}}}, "evaluate: text: .*gone.jsonl is not there"),
        ({"evaluate": {"arguments": ["x"]}}, "arguments is a list, not a mapping"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(plan: Planner, changes: dict, says: str) -> None:
    with pytest.raises(CompeteError, match=says):
        plan(sections(**changes))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs one section or more of preprocess, pretrain"),
        ("train: {}", "train is none of preprocess"),
        ("convert: {}\npretrain: {}", "sections convert, pretrain are not .* in this order"),
        ("convert: [1", "is not YAML"),
        ("convert: 3", "convert is a number, not a mapping"),
    ],
)
def test_what_is_no_chain(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "chain.yaml").write_text(text)
    with pytest.raises(CompeteError, match=says):
        read_chain(tmp_path / "chain.yaml", tmp_path)


def test_overrides_belong_to_a_recipe(plan: Planner) -> None:
    with pytest.raises(CompeteError, match="--lr overrides a recipe"):
        plan({"convert": {"arguments": {"checkpoint": "."}}}, "--lr", "1")


def test_the_example_is_a_whole_chain() -> None:
    assert list(read_chain(ROOT / "examples/chain_demo.yaml", Path("/c"))) == [
        "preprocess",
        "pretrain",
        "convert",
        "evaluate",
    ]
