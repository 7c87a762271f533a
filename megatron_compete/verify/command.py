"""`megatron-compete verify`: folders against their indices, and two models on the same text."""

from dataclasses import dataclass
from pathlib import Path

from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class VerifyOptions:
    """What to look at."""

    checkpoint: Path | None = option(None, metavar="DIR", help="Megatron's --save folder, or an iter_ folder")
    hf: Path | None = option(None, metavar="DIR", help="Hugging Face folder: an export, or what was imported")
    text: Path | None = option(
        None, metavar="FILE", help="JSON Lines with a text key, or plain text, to compare logits on"
    )
    read: bool = option(False, help="read all tensors too, and look for values that are no numbers")
    tokenizer_model: str | None = option(None, metavar="PATH", help="the training tokenizer, where it has moved")
    windows: int = option(32, help="sequences compared")
    length: int = option(512, help="tokens of text in a sequence at most")
    """Enough to see every position's effect, and cheap for models of long context."""
    tolerance: float = option(1e-3, help="largest logit difference that passes")
    trust_remote_code: bool = option(False, help="run code in the Hugging Face folder or of the tokenizer")
    json: Path | None = option(None, metavar="FILE", help="write the numbers of the comparison there too")

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.hf is None:
            raise CompeteError("nothing to verify: give --checkpoint, --hf, or both")
        if self.text is not None and (self.checkpoint is None or self.hf is None):
            raise CompeteError("--text compares two models: give both --checkpoint and --hf")
        check_options(self)
        for name in ("windows", "length"):
            if getattr(self, name) < 1:
                raise CompeteError(f"--{name} {getattr(self, name)}: nothing would be compared, give 1 or more")
        if self.tolerance < 0:
            raise CompeteError(f"--tolerance {self.tolerance}: give a number from 0, such as 1e-3")
        if self.json and self.text is None:
            raise CompeteError(f"--json {self.json} holds what --text finds: give --text too")


def verify(options: VerifyOptions) -> None:
    """Inspect, then compare.

    Raises:
        CompeteError: damage, or another model.
    """
    from megatron_compete.checkpoint.texts import read_documents
    from megatron_compete.verify.conversion import compare_and_judge, inspect  # torch: seconds to import

    texts = read_documents(options.text, "--text") if options.text else []
    inspect(options.checkpoint, options.hf, options.read)
    if options.checkpoint is not None and options.hf is not None and options.text is not None:
        compare_and_judge(options, options.checkpoint, options.hf, texts)


main = Command(
    name="verify",
    description="Check that a Megatron checkpoint or a Hugging Face folder is whole; with both and --text, that they are "
    "the same model.",
    example="--checkpoint runs/demo/checkpoints --hf runs/demo/hf --text data/heldout.jsonl",
    options=VerifyOptions,
    run=verify,
)
