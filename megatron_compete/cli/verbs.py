"""The verbs: what each is for and which module has it. A verb's module is imported when it is asked for."""

import importlib
from dataclasses import dataclass
from typing import cast

from megatron_compete.common.command_line import PROGRAM, Command
from megatron_compete.common.errors import CompeteError, did_you_mean


@dataclass(frozen=True)
class Verb:
    """A line of `megatron-compete --help`."""

    name: str
    group: str
    summary: str
    module: str
    """Whose `main` is the `Command`."""

    def load(self) -> Command:
        """Import the command."""
        return cast(Command, importlib.import_module(f"megatron_compete.{self.module}").main)


VERBS = (
    Verb("tokenizer", "data", "train a SentencePiece tokenizer", "data.tokenizer"),
    Verb("preprocess", "data", "tokenise text into Megatron's .bin/.idx", "data.preprocess"),
    Verb("inspect", "data", "check a dataset and show what it holds", "data.inspect_dataset"),
    Verb(
        "conversations",
        "data",
        "check visual instruction data and its images",
        "data.conversations.inspect_conversations",
    ),
    Verb("merge", "data", "join datasets", "data.merge"),
    Verb("split", "data", "cut a dataset into train, validation and test", "data.split"),
    Verb("blend", "data", "weights of datasets for --data-path", "data.blend"),
    Verb("pretrain", "training", "train from a recipe", "cli.pretrain"),
    Verb("plan", "training", "price a recipe without a GPU", "plan.command"),
    Verb("submit", "cluster", "write a run folder and submit it to Slurm", "cluster.submit"),
    Verb("status", "cluster", "how runs are getting on", "cluster.status_report"),
    Verb("report", "cluster", "one HTML page of a run, or of several", "report.command"),
    Verb("doctor", "cluster", "what this environment can do", "launch.doctor.command"),
    Verb("convert", "checkpoints", "between Megatron and Hugging Face", "cli.convert"),
    Verb("verify", "checkpoints", "is a checkpoint whole, a conversion the same model", "verify.command"),
    Verb("audit", "checkpoints", "what a checkpoint's routers and experts do", "audit.command"),
    Verb("study", "studies", "train a grid of settings and compare them", "study.command"),
    Verb("completion", "this command", "print a completion script for bash, zsh or fish", "cli.completion"),
)

GROUPS = tuple(dict.fromkeys(verb.group for verb in VERBS))


def find_verb(name: str) -> Verb:
    """A verb by its name.

    Raises:
        CompeteError: there is none, with the one that was probably meant.
    """
    for verb in VERBS:
        if verb.name == name:
            return verb
    hint = did_you_mean(name, [verb.name for verb in VERBS])
    raise CompeteError(f"{PROGRAM} has no verb {name}{hint}: see {PROGRAM} --help")
