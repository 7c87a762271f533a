"""`megatron-compete submit`, as a user types it, with stand-ins for Slurm's commands."""

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_compete.cluster.snapshot import GitState, Snapshot
from megatron_compete.cluster.submit import note_on_code
from tests.cluster.stand_in import ROOT, LoginNode, said

QUICK = ("--recipe", "small.yaml", "--nodes", "2", "--no-check")


def test_it_is_light() -> None:
    """A login node's Python may have neither torch nor Megatron; nothing of the verb's own needs them."""
    check = (
        "import sys; from megatron_compete.cli.verbs import find_verb; find_verb('submit').load().parser(); "
        "assert not {'torch', 'numpy', 'megatron', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


def test_a_run_folder_is_written_and_submitted(login_node: LoginNode) -> None:
    done = login_node.submit_afresh(
        "--recipe", "small.yaml", "--nodes", "2", "--time", "2:00:00", "--dependency", "afterok:7", "--lr", "0.5"
    )
    assert done.returncode == 0, done.stderr
    run = login_node.folder / "runs" / "small"
    assert login_node.submitted() == [
        f"sbatch --parsable --dependency=afterok:7 --kill-on-invalid-dep=yes {run}/submit.sbatch"
    ]
    assert done.stdout.startswith("job 101 is submitted: 2 nodes of 2 ranks\n") and f"status {run}" in done.stdout
    assert json.loads((run / "job.json").read_text())["job_id"] == "101"
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["launch"] == {"nnodes": 2, "nproc-per-node": 2} and recipe["arguments"]["lr"] == "0.5"
    settings = (run / "cluster.env").read_text().splitlines()
    assert "COMPETE_TIME=2:00:00" in settings and f"COMPETE_VENV={sys.prefix}" in settings
    assert "#SBATCH --time=2:00:00" in (run / "submit.sbatch").read_text()
    assert (run / "command.txt").read_text().startswith("torchrun ") and (run / "git.txt").is_file()
    assert (run / "code/slurm/job.sh").is_file() and (run / "code/megatron_compete/cli/__init__.py").is_file()


def test_tokens_stay_in_the_users_file(login_node: LoginNode) -> None:
    """Neither the run folder nor the chain's holds them; the job reads them where they are, and the ranks get them."""
    secret = secrets.token_hex(8)
    with (login_node.folder / "cluster.env").open("a") as settings:
        settings.write(
            f"HF_TOKEN=hf_{secret}\nexport WANDB_API_KEY='wandb ${secret}' # it's mine\nNCCL_DEBUG=WARN\nCOMPETE_QOS=low\n"
        )
    done = login_node.submit(*QUICK)
    assert done.returncode == 0, done.stderr
    run = login_node.folder / "runs/small"
    texts = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "code" not in path.parts}
    assert len(texts) >= 6 and not [path for path, text in texts.items() if secret.encode() in text]
    assert {path.name: path.stat().st_mode & 0o777 for path in texts if path.name != "job.json"}.keys() >= {
        "cluster.env", "recipe.yaml", "command.txt", "submit.sbatch", "git.txt",
    }  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in texts if path.name != "job.json"} == {0o600}
    script = f". {run}/code/slurm/job.sh; load_settings; env -0"
    slurm = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n1", "COMPETE_RUN": str(run), "COMPETE_MPI": "kept"}
    shown = subprocess.run(
        ["bash", "-eu", "-c", script], env=login_node.environment | slurm, cwd="/", capture_output=True, text=True
    )
    read = dict(one.split("=", 1) for one in shown.stdout.split("\0") if "=" in one)
    assert (read["HF_TOKEN"], read["WANDB_API_KEY"], read["NCCL_DEBUG"]) == (
        f"hf_{secret}",
        f"wandb ${secret}",
        "WARN",
    ), shown.stderr
    assert (read["COMPETE_QOS"], read["COMPETE_RUN"], read["COMPETE_MPI"]) == ("low", str(run), "kept")
    (login_node.folder / "cluster.env").unlink()
    gone = subprocess.run(
        ["bash", "-eu", "-c", script], env=login_node.environment | slurm, cwd="/", capture_output=True, text=True
    )
    assert gone.returncode == 2 and "which the job was submitted with, cannot be read" in gone.stderr


def test_a_chains_section_goes_over_the_file(login_node: LoginNode) -> None:
    write_chain(login_node)
    chain = yaml.safe_load((login_node.folder / "chain.yaml").read_text())
    chain["convert"]["cluster"] = {"NCCL_DEBUG": "INFO", "COMPETE_QOS": None}
    (login_node.folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    (login_node.folder / "cluster.env").write_text("COMPETE_GPUS_PER_NODE=0\nNCCL_DEBUG=WARN\nCOMPETE_QOS=low\n")
    assert login_node.submit("--chain", "chain.yaml", "--dry-run").returncode == 0
    assert (login_node.folder / "runs/chain/chain.yaml").stat().st_mode & 0o777 == 0o600
    for part, expected in {"3-convert": "INFO -", "4-evaluate": "WARN low"}.items():
        run = login_node.folder / "runs/chain" / part
        script = f". {run}/code/slurm/job.sh; load_settings; echo $NCCL_DEBUG ${{COMPETE_QOS:--}}"
        slurm = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n1", "COMPETE_RUN": str(run)}
        shown = subprocess.run(
            ["bash", "-eu", "-c", script], env=login_node.environment | slurm, cwd="/", capture_output=True, text=True
        )
        assert shown.stdout.strip() == expected, shown.stderr


def test_code_that_git_does_not_track_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    note_on_code(Snapshot({}, GitState("abc", (" M tools/old.py", "?? tools/new.py"), b"")))
    assert capsys.readouterr().err == "note: not in the job's code, because git does not track them: tools/new.py\n"
    note_on_code(Snapshot({}, None))
    assert capsys.readouterr().err == ""


def test_a_dry_run_submits_nothing_and_needs_no_slurm(login_node: LoginNode) -> None:
    for name in ("sbatch", "squeue", "scontrol"):
        (login_node.bin / name).unlink()
    path = (
        f"{login_node.bin}:{Path(str(shutil.which('git'))).parent}"
        if shutil.which("sbatch") is None
        else str(login_node.bin)
    )
    done = login_node.submit(*QUICK, "--run", "dry", "--dry-run", PATH=path)
    assert done.returncode == 0, done.stderr
    assert (
        f"{login_node.folder}/dry is written, nothing is submitted" in done.stdout
        and "#SBATCH --nodes=2" in done.stdout
    )
    assert (login_node.folder / "dry/submit.sbatch").is_file() and not (login_node.folder / "dry/job.json").exists()
    assert "sbatch is not on PATH" in said(login_node.submit(*QUICK, PATH=path))


def test_the_script_runs_the_trainer_from_the_snapshot(login_node: LoginNode) -> None:
    assert login_node.submit(*QUICK, "--dry-run").returncode == 0
    run = login_node.folder / "runs/small"
    environment = login_node.environment | {
        "DRY_RUN": "1", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS_PER_NODE": "2",
    }  # fmt: skip
    shown = subprocess.run(
        ["bash", run / "submit.sbatch"], env=environment, cwd=login_node.folder, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert f"--recipe {run}/recipe.yaml" in shown.stdout and "--rdzv-endpoint node7:" in shown.stdout
    assert shown.stdout.startswith("srun ") and f"{sys.prefix}/bin/python" in shown.stdout


def test_the_same_again_and_another_job(login_node: LoginNode) -> None:
    assert login_node.submit(*QUICK).returncode == 0
    assert "its job 101 is in the queue (RUNNING): scancel it first" in said(login_node.submit(*QUICK, QUEUE="RUNNING"))
    assert login_node.submit(*QUICK).returncode == 0
    assert len(login_node.submitted()) == 2
    other = said(login_node.submit(*QUICK, "--lr", "3"))
    assert "is of another job (recipe.yaml, command.txt differ)" in other and "--update" in other
    assert login_node.submit(*QUICK, "--lr", "3", "--update").returncode == 0
    assert login_node.submit(*QUICK, "--lr", "4", "--run", "else").returncode == 0
    assert (login_node.folder / "runs/small/earlier/0/recipe.yaml").is_file() and len(login_node.submitted()) == 4
    (login_node.folder / "else/finished").touch()
    done = login_node.submit(*QUICK, "--lr", "5", "--run", "else")
    assert done.returncode == 0 and "is finished: nothing to do" in done.stdout and len(login_node.submitted()) == 4


def test_a_job_that_may_be_queued_is_not_submitted_again(login_node: LoginNode) -> None:
    assert login_node.submit(*QUICK).returncode == 0
    run = login_node.folder / "runs/small"
    down = said(login_node.submit(*QUICK, DOWN="1"))
    assert "its job 101 is still in the queue cannot be told (slurm_load_jobs error: Unable to contact" in down
    assert f"sbatch {run}/submit.sbatch" in down
    assert "cannot be told" in said(login_node.submit(*QUICK, "--lr", "9", "--update", "--dry-run", DOWN="1"))
    assert "lr: 0.001" in (run / "recipe.yaml").read_text()  # what a queued job will read
    record = (run / "job.json").read_text()
    (run / "job.json").write_text(record[:9])
    assert "job.json is damaged, and the job that it is of may be in the queue" in said(login_node.submit(*QUICK))
    assert len(login_node.submitted()) == 1
    (run / "job.json").write_text(record)
    (run / "finished").touch()
    assert login_node.submit(*QUICK, DOWN="1").returncode == 0  # nothing to ask about


def test_a_job_that_sbatch_was_given_by_hand_counts(login_node: LoginNode) -> None:
    """The documented way to run a folder again; job.json is of the submission before."""
    assert login_node.submit(*QUICK).returncode == 0
    run = login_node.folder / "runs/small"
    squeue = (
        (login_node.bin / "squeue")
        .read_text()
        .replace("for id in", "case ,$3, in *,77,*) ;; *) exit 0 ;; esac; for id in")
    )
    (login_node.bin / "squeue").write_text(squeue)
    for name, line in {
        "attempt.running": "77\t1\tn1\n",
        "attempts.tsv": "0\t77\t1\t2\tn1\tstopped\t75\t-\t-\n",
    }.items():
        (run / name).write_text(line)
        assert "is in the queue (PENDING): scancel it first" in said(login_node.submit(*QUICK, QUEUE="PENDING"))
        (run / name).unlink()
    assert len(login_node.submitted()) == 1


def test_a_chain_asks_the_queue_before_it_submits_anything(login_node: LoginNode) -> None:
    write_chain(login_node)
    assert login_node.submit("--chain", "chain.yaml").returncode == 0
    changed = (login_node.folder / "chain.yaml").read_text().replace("tasks: x", "tasks: y")
    (login_node.folder / "chain.yaml").write_text(changed)
    assert "3-convert: whether its job 101" in said(login_node.submit("--chain", "chain.yaml", "--update", DOWN="1"))
    chain = login_node.folder / "runs/chain"
    assert len(login_node.submitted()) == 2 and "--tasks x" in (chain / "4-evaluate/command.txt").read_text()
    (chain / "3-convert/finished").touch()
    assert "4-evaluate: whether its job 102" in said(login_node.submit("--chain", "chain.yaml", DOWN="1"))
    assert len(login_node.submitted()) == 2


def test_sbatch_that_was_not_answered_may_have_submitted(login_node: LoginNode) -> None:
    timed_out = "Batch job submission failed: Socket timed out on send/recv operation"
    assert "may be in the queue all the same: look with squeue" in said(login_node.submit(*QUICK, REFUSE=timed_out))


def test_what_slurm_refuses_leaves_a_folder_that_can_be_written_again(login_node: LoginNode) -> None:
    refused = said(login_node.submit(*QUICK, REFUSE="Invalid partition name specified"))
    assert refused == f"sbatch {login_node.folder}/runs/small/submit.sbatch: Invalid partition name specified"
    assert login_node.submit(*QUICK, "--partition", "main").returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recipe", "none.yaml", "--nodes", "1"), "--recipe none.yaml cannot be read"),
        (("--recipe", "small.yaml"), "--nodes is missing"),
        (("--recipe", "small.yaml", "--nodes", "0"), "--nodes 0: give 1 or more"),
        ((*QUICK, "--time", "soon"), "soon is no time limit of Slurm's"),
        ((*QUICK, "--time", "3"), "is over before COMPETE_SIGNAL_SECONDS=300"),
        ((*QUICK, "--cluster", "none.env"), "--cluster none.env: no such file"),
        ((*QUICK, "--container", "none.sif"), "--container none.sif: no such file"),
        ((*QUICK, "--mock-data=false"), "no training data"),
        ((*QUICK, "--mock-data=false", "--data-path", "gone"), "--data-path gone: gone.bin is not there"),
        ((*QUICK, "--gpus-per-node", "eight"), "COMPETE_GPUS_PER_NODE=eight: give a whole number"),
        ((*QUICK, "--max-failures", "few"), "COMPETE_MAX_FAILURES=few"),
        (("--recipe", "small.yaml", "--nodes", "2", "--global-batch-size", "9"), "--global-batch-size 9 does not divide"),
        ((*QUICK, "--save", "msc://store/run"), "--save msc://store/run: object storage is not read or written here"),
        ((*QUICK, "--run", "s3://bucket/run"), "--run s3:/bucket/run: object storage"),
        ((*QUICK, "stray"), "'stray' does not follow a flag"),
        ((*QUICK, "--run", "a b"), "means something else to Slurm"),
        (("--chain", "chain.yaml", "--nodes", "2"), "--nodes is one job's: write nodes into the sections"),
        (("--chain", "none.yaml"), "--chain none.yaml cannot be read"),
    ],
)  # fmt: skip
def test_what_the_user_can_fix_is_one_line_and_nothing_is_written(
    login_node: LoginNode, words: tuple[str, ...], says: str
) -> None:
    assert says in said(login_node.submit(*words))
    assert not (login_node.folder / "runs").exists() and login_node.submitted() == []


def test_images(login_node: LoginNode) -> None:
    (login_node.folder / "i.sif").touch()
    for image, software in (("i.sif", "apptainer"), ("nvcr.io#nvidia/pytorch:25.09-py3", "pyxis")):
        assert login_node.submit(*QUICK, "--container", image, "--run", software, "--dry-run").returncode == 0
        settings = (login_node.folder / software / "cluster.env").read_text()
        assert f"COMPETE_SOFTWARE={software}\n" in settings and "COMPETE_IMAGE=" in settings
    (login_node.folder / "cluster.env").write_text("COMPETE_GPUS_PER_NODE=1\nCOMPETE_SOFTWARE=pyxis\n")
    assert "COMPETE_SOFTWARE=pyxis without an image" in said(login_node.submit(*QUICK, "--run", "b"))
    (login_node.folder / "cluster.env").write_text("COMPETE_GPUS_PER_NODE=1\nCOMPETE_VENV=/no\n")
    assert "COMPETE_VENV=/no: no bin/python in it" in said(login_node.submit(*QUICK, "--run", "b"))


def write_chain(login_node: LoginNode) -> None:
    (login_node.folder / "ck").mkdir()
    chain = {"convert": {"arguments": {"checkpoint": "ck"}}, "evaluate": {"arguments": {"tasks": "x"}}}
    (login_node.folder / "chain.yaml").write_text(yaml.safe_dump(chain))


def test_parts_of_a_chain_wait_for_one_another(login_node: LoginNode) -> None:
    write_chain(login_node)
    done = login_node.submit("--chain", "chain.yaml", "--dependency", "afterany:5")
    assert done.returncode == 0, done.stderr
    chain = login_node.folder / "runs/chain"
    assert (chain / "chain.yaml").is_file()
    kill = "--kill-on-invalid-dep=yes"
    assert login_node.submitted() == [
        f"sbatch --parsable --dependency=afterany:5 {kill} {chain}/3-convert/submit.sbatch",
        f"sbatch --parsable --dependency=afterok:101 {kill} {chain}/4-evaluate/submit.sbatch",
    ]
    assert json.loads((chain / "4-evaluate/job.json").read_text())["kind"] == "evaluate"


def test_a_chain_goes_on_with_what_is_not_finished(login_node: LoginNode) -> None:
    write_chain(login_node)
    assert login_node.submit("--chain", "chain.yaml").returncode == 0
    chain = login_node.folder / "runs/chain"
    waiting = login_node.submit("--chain", "chain.yaml", QUEUE="PENDING")
    assert waiting.returncode == 0 and "3-convert: job 101 is in the queue (PENDING)" in waiting.stdout
    assert len(login_node.submitted()) == 2
    (chain / "3-convert/finished").touch()
    again = login_node.submit("--chain", "chain.yaml")
    assert "3-convert: finished already\n4-evaluate: job 103\n" in again.stdout
    assert login_node.submitted()[2:] == [f"sbatch --parsable {chain}/4-evaluate/submit.sbatch"]
    changed = (login_node.folder / "chain.yaml").read_text().replace("tasks: x", "tasks: y")
    (login_node.folder / "chain.yaml").write_text(changed)
    assert "4-evaluate is of another job" in said(login_node.submit("--chain", "chain.yaml"))
    assert login_node.submit("--chain", "chain.yaml", "--update").returncode == 0
    assert "--tasks y" in (chain / "4-evaluate/command.txt").read_text()
    (chain / "4-evaluate/finished").touch()
    (login_node.folder / "chain.yaml").write_text(changed.replace("tasks: y", "tasks: z"))
    over = login_node.submit("--chain", "chain.yaml")
    assert "4-evaluate: finished already (command.txt were others: to run it anew, remove its folder)" in over.stdout
