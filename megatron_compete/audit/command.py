"""`megatron-compete audit CHECKPOINT`: what its routers and experts do; of finished audits, their page side by side."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class AuditOptions:
    """The verb's flags."""

    checkpoints: tuple[Path, ...] = option(
        MISSING,
        "checkpoints",
        metavar="CHECKPOINT",
        help="Megatron's --save folder, an iter_ folder in it, or a Hugging Face folder; or folders of finished audits, which "
        "are put side by side",
    )
    out: Path = option(MISSING, metavar="DIR", help="folder to write: audit.html, audit.json, figures")
    text: tuple[str, ...] = option(
        (), metavar="FILE", help="text as preprocess reads it, or prefixes of datasets; each is a domain"
    )
    domain_key: str | None = option(None, metavar="KEY", help="JSON key whose value is a document's domain")
    text_key: str = option("text", metavar="KEY", help="JSON key of the text")
    tokens: int = option(131072, help="tokens whose routing is counted, at most")
    competition_tokens: int = option(16384, help="of these, tokens that all experts answer; 0: none")
    regret_tokens: int = option(
        16384, help="of these, tokens that each layer sends elsewhere, six more passes for every layer; 0: none"
    )
    seq_length: int = option(1024, help="tokens of a sequence, at most what the model takes")
    micro_batch_size: int = option(4, help="sequences at a time")
    against: Path | None = option(
        None, metavar="CHECKPOINT", help="another checkpoint of the same architecture: saturation, change rate, drift"
    )
    iteration: int | None = option(None, help="which iteration of a --save folder (default: the latest)")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="auto is a GPU where there is one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", help="auto is the checkpoint's")
    tokenizer: Path | None = option(
        None, metavar="DIR", help="folder of a Hugging Face tokenizer, where it is not the model's"
    )
    tokenizer_model: Path | None = option(
        None, metavar="PATH", help="a Megatron checkpoint's tokenizer, where it has moved"
    )
    trust_remote_code: bool = option(False, help="run code in the Hugging Face folder")

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("tokens", "seq_length", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise CompeteError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        for name in ("competition_tokens", "regret_tokens"):
            if getattr(self, name) < 0:
                raise CompeteError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")
        if self.is_comparison and self.text:
            raise CompeteError(
                f"--text {self.text[0]} is for an audit, and {self.checkpoints[0]} is a finished one: leave it out"
            )
        if not self.is_comparison and len(self.checkpoints) > 1:
            unfinished = next(one for one in self.checkpoints if not _is_audit(one))
            raise CompeteError(
                f"{unfinished} is no finished audit: audit one checkpoint at a time, then give the audits' folders"
            )
        if not self.is_comparison and not self.text:
            raise CompeteError(
                "--text is missing: name the text to run the model on, such as held-out documents of each domain"
            )

    @property
    def is_comparison(self) -> bool:
        """Whether finished audits are put side by side."""
        return all(map(_is_audit, self.checkpoints))


def _is_audit(path: Path) -> bool:
    from megatron_compete.audit.results import JSON

    return (path / JSON).is_file()


def audit(options: AuditOptions) -> None:
    """Audit a checkpoint, or compare audits, and say where the page is."""
    if options.is_comparison:
        from megatron_compete.audit.page import write_comparison_page
        from megatron_compete.audit.results import read_audit

        page = options.out / "comparison.html"
        write_comparison_page([(str(path), read_audit(path)) for path in options.checkpoints], page)
        print(f"wrote {page}")
        return
    from megatron_compete.audit.run import PAGE, run_audit  # torch and transformers: seconds to import

    found = run_audit(options)
    print(
        f"{len(found.layers)} MoE layers on {found.tokens} tokens, loss {found.loss.mean:.4f}: wrote {options.out / PAGE}"
    )


main = Command(
    name="audit",
    description="What the routers and experts of a mixture-of-experts checkpoint do on a text: which experts are used, how "
    "alike they are, and what better routing would change. For Megatron checkpoints and Hugging Face folders, whether or not "
    "they were trained with competition. Started by torchrun, several processes share the text.",
    example="runs/demo/checkpoints --text books.jsonl code.jsonl --out runs/demo/audit",
    options=AuditOptions,
    run=audit,
)
