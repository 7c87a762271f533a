"""Pages that are tables of what the code declares: metrics, exit codes, settings, files, replaced symbols, rooms."""

import re

import megatron_compete
from generate import ROOT, table
from megatron_compete.cluster.run_folder import COMPARED
from megatron_compete.cluster.settings import DEFAULTS, KEYS, VARIABLES
from megatron_compete.common.errors import USAGE_EXIT_CODE
from megatron_compete.launch.stop_signal import STOPPED_EXIT_CODE
from megatron_compete.moe.metrics_table import COMPETITION_METRICS, ROUTING_METRICS, Metric
from megatron_compete.upstream.table import ROWS

MEANING = {
    "moe/load-max": "tokens of the busiest expert of any layer over the whole step and all ranks, relative to the mean",
    "moe/load-min": "tokens of the idlest expert of any layer, relative to the mean",
    "moe/load-std": "spread of the experts' tokens, relative to the mean",
    "moe/dead-experts": "experts without a token, summed over layers",
    "moe/router-entropy": "entropy of the router's softmax, nats per token; ln E is undecided",
    "moe/expert-change-rate": "share of the top-K experts of fixed probe tokens that differ from those at the last `--log-interval`",
    "competition/active-layers": "layers that competed",
    "competition/distillation-loss": "distillation of the router, before its weight",
    "competition/diversity-loss": "mean cosine between the outputs of a token's winners, before its weight",
    "competition/response-balance-loss": "load balance of the responses, before its weight",
    "competition/tokens": "tokens that competed over the whole step, padding aside, summed over layers",
    "competition/agreement": "share of the winners (by utility: of the K experts that would lower the loss most) that the router would have chosen",
    "competition/agreement-top1": "share of tokens whose best expert is the router's favourite",
}
"""What the docs say of a metric; a metric without a line here ends the build."""

AT_LOG_INTERVAL = ("moe/router-entropy", "moe/expert-change-rate")


def metrics_page() -> str:
    """TensorBoard scalars."""
    kinds = {metric.tag: metric for metrics in (*COMPETITION_METRICS.values(), ROUTING_METRICS) for metric in metrics}
    rows = [[f"`{tag}`", MEANING[tag], when(tag), reduction(metric)] for tag, metric in kinds.items()]
    return f"""# Metrics

TensorBoard (or wandb) shows these beside Megatron's own scalars. With `--moe-per-layer-logging` each layer has its own,
under `TAG/layer-N`. `moe/metrics_table.py` declares them.

{table(["scalar", "meaning", "logged at", "from layers to model"], rows)}
A logged step (each `--tensorboard-log-interval` where there is a writer, and each `--log-interval`) costs one all-reduce;
other steps cost none. Only passes with gradient are counted: recomputation counts once, evaluation and padding never.

Competition by utility has no losses of its own, so the three `*-loss` scalars exist for competition by response alone.
Where a [sample of tokens](../concepts/token-samples.md) competes, all of competition's are means over it.
"""


def when(tag: str) -> str:
    """The steps at which a metric is written."""
    if tag in AT_LOG_INTERVAL:
        return "`--log-interval`"
    competing = tag.startswith("competition/") and tag != "competition/active-layers"
    return "steps at which a layer competed" if competing else "every logged step"


def reduction(metric: Metric) -> str:
    """How the layers' values become the model's."""
    return {"len": "count"}.get(metric.of_model.__name__, metric.of_model.__name__)


def exit_codes_page() -> str:
    """Exit codes of ranks, launchers and tools."""
    rows = [
        ["0", "finished", "nothing: a finished run that is submitted again leaves at once"],
        ["1", "failed", "tries again from the last checkpoint, at most `COMPETE_MAX_FAILURES` times in a row without a new one"],
        [str(USAGE_EXIT_CODE), "bad input: one line names the file or flag, the value and a way out", "never tries again"],
        ["16", "Megatron: the same NaN or infinity twice; the checkpoint before it is saved", "tries again; see [Faults](../operations/faults.md#a-loss-that-is-not-a-number)"],
        ["17", "Megatron: a NaN or infinity that a second run of the step did not repeat", "tries again"],
        [str(STOPPED_EXIT_CODE), "told to stop (SIGTERM, `--exit-duration-in-mins`), saved; the same command goes on", "requeues under the same job id"],
        ["130", "interrupted from the keyboard", "a failure"],
    ]  # fmt: skip
    return f"""# Exit codes

{table(["code", "meaning", "what the batch script does"], rows)}
All verbs use {USAGE_EXIT_CODE} for bad input. `inspect`, `verify` and `doctor --require` leave with 1 where something is
damaged, different or missing. "Finished" is what training decided: all of `--train-iters`, `--exit-interval`, or the
evaluation of `--skip-train`. Megatron leaves with code 0 in some twenty other places; those are failures here.
"""


def cluster_env_page() -> str:
    """Settings of a cluster, from the example that ships and the checks of each key."""
    rows = [[f"`{key}`", about, f"`{DEFAULTS[key]}`" if key in DEFAULTS else ""] for key, about in explained().items()]
    missing = set(KEYS) - set(explained()) - {VARIABLES}
    if missing:
        raise LookupError(f"slurm/cluster.env.example does not explain {', '.join(sorted(missing))}")
    return f"""# cluster.env

The settings of a cluster: lines of `KEY=value`, read as bash reads them. `megatron-compete submit` looks for the file at
`--cluster FILE`, `$COMPETE_CLUSTER`, `./cluster.env` and `~/.config/megatron-compete/cluster.env`, in this order. Its flags
win over the file, a chain's sections over both. Start from the example:

    cp slurm/cluster.env.example cluster.env

{table(["key", "meaning", "default"], rows)}
Every other variable in the file (`NCCL_SOCKET_IFNAME`, `HF_TOKEN`, ...) is exported to the ranks as it stands. A run folder
names the file and does not copy those variables, so tokens stay in one place: `chmod 600 cluster.env`. An unknown
`COMPETE_*` key is an error that names the nearest known one.
"""


def explained() -> dict[str, str]:
    """{key: its comment} of slurm/cluster.env.example."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in (ROOT / "slurm" / "cluster.env.example").read_text().splitlines():
        if key := re.match(r"#?(COMPETE_\w+)=", line):
            found[key[1]] = " ".join(comment)  # several keys may share one
        elif line.startswith("# ") and not line.startswith("# ---"):
            comment.append(line[2:])
        else:
            comment = []
    return found


FILES = {
    "recipe.yaml": "the resolved recipe; readable by you alone",
    "command.txt": "what runs, as a shell line",
    "cluster.env": "the cluster's settings, and where the other variables are",
    "submit.sbatch": "what Slurm is asked for; `sbatch` it to run the same job again",
    "code/": "snapshot of what runs: the files that git tracks, as the working tree had them",
    "git.txt, git.patch": "the revision, and what differed from it",
    "job.json": "the latest submission",
    "logs/": "output of every attempt",
    "attempts.tsv": "a line for every attempt: how it ended, and why",
    "outcomes/N": "what the trainer said of attempt N: finished, stopped or refused",
    "failures/N-HOST-RANK.json": "a rank that failed in attempt N",
    "progress.json": "the last step that was logged",
    "steps.jsonl": "every step that was logged, of all attempts in their order: the run's curve",
    "report.html": "the run's page: at a job's end, when an attempt follows another, and by `megatron-compete report`",
    "finished": "training has come to its end",
    "checkpoints/, tensorboard/": "unless `--save` and `--tensorboard-dir` name others",
    "earlier/N/": "what `submit --update` replaced",
}


def run_folder_page() -> str:
    """What lies in a run folder."""
    missing = [name for name in COMPARED if name not in FILES]
    if missing:
        raise LookupError(f"nothing is said of {', '.join(missing)} in a run folder")
    return f"""# Run folder

`megatron-compete submit` writes `runs/NAME` (or `--run DIR`): everything that the job needs, and later everything that it
leaves. Files appear whole or not at all.

{table(["file", "what"], [[f"`{name}`", about] for name, about in FILES.items()])}
`sbatch runs/NAME/submit.sbatch` repeats the job with the same recipe, settings and code. The same `submit` again submits
the same folder; with other settings ({", ".join(f"`{name}`" for name in COMPARED)} differ) it is an error, because the folder
would no longer say what made its checkpoints: take another `--run`, or `--update`.
"""


def upstream_page() -> str:
    """Symbols of Megatron's and torch's that are replaced at run time."""
    rows = [[f"`{row.owner}`", ", ".join(f"`{name}`" for name in row.names), row.why, f"`{row.test}`"] for row in ROWS]
    count = sum(len(row.symbols) for row in ROWS)
    return f"""# Replaced upstream symbols

Nothing of Megatron's is forked. Where it has no hook, a symbol is replaced while a job runs: {count} in all, many of them the
answers of `torch.cuda` on a host without CUDA. `megatron_compete/upstream/table.py` holds them with the reason, and each has a
test that fails once upstream no longer needs the replacement. [Why one
table](../concepts/decisions.md#a-plugin-and-one-table-of-what-it-replaces).

{table(["owner", "names", "replaced because", "can go when this test fails"], rows)}"""


def rooms_page() -> str:
    """The package's rooms in their order, from its docstring, which a test holds them to."""
    rooms = re.findall(r"^    (\w+)  +(\S.*)$", megatron_compete.__doc__ or "", re.MULTILINE)
    rows = [[str(number), f"`{room}`", about] for number, (room, about) in enumerate(rooms, 1)]
    return f"""# Rooms of the package

Every folder of `megatron_compete/` is a room with one idea. A room imports only rooms above it in this list, also inside
functions; `tests/test_rooms.py` draws the import graph and fails on an arrow that runs the other way.

{table(["", "room", "what is in it"], rows)}"""
