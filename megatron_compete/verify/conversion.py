"""Is a checkpoint whole, and a conversion the same model? Files against their index; logits, perplexity and token ids of
Megatron and Hugging Face on the same text."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.checkpoint.families.vision import is_vision_language
from megatron_compete.checkpoint.hf_model import load_hf_model, load_hf_tokenizer, takes_pictures
from megatron_compete.common.comparison import check_finite, largest_difference
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.verify.command import VerifyOptions
from megatron_compete.verify.vision import VisionComparison, compare_vision, rows


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; perplexities are per token, over the same windows of text."""

    tokens: int
    max_logit_difference: float
    mean_logit_difference: float
    top1_agreement: float
    """Share of the positions at which both models prefer the same next token."""
    same_ids: bool
    """Whether both tokenizers gave the same ids for every document."""
    vocab_size: int
    perplexity_untrained: float
    """Of the same architecture as initialised by the checkpoint's seed."""
    perplexity_megatron: float
    perplexity_hf: float


def windows(ids: list[list[int]], length: int, limit: int) -> Tensor:
    """Up to `limit` windows of `length` + 1 token ids, [windows, length + 1], spread evenly over the documents."""
    cut = [document[start : start + length + 1] for document in ids for start in range(0, len(document) - length, length)]  # fmt: skip
    if not cut:
        raise CompeteError(f"the text is shorter than one sequence of {length + 1} tokens: give more of it")
    stride = max(1, len(cut) // limit)
    return torch.tensor(cut[::stride][:limit])


def compare(
    checkpoint: Path, hf: Path, texts: list[str], limit: int = 32, tokenizer_model: str | None = None,
    length: int = VerifyOptions.length, trust_remote_code: bool = False,
) -> Comparison:  # fmt: skip
    """Run both models over windows of `texts`; Megatron's with one rank in this process, in fp32.

    Args:
        limit: windows at most.
        length: tokens of a window at most; no more than the model was trained with.
        trust_remote_code: run code that the folder or the tokenizer brings; this package's own needs no such word.
    Raises:
        CompeteError: a folder that cannot be loaded, ids that a model does not embed, or logits that are no numbers.
    """
    from megatron.training import get_args, get_tokenizer

    from megatron_compete.checkpoint.location import find_checkpoint
    from megatron_compete.checkpoint.reader import TorchDistCheckpoint
    from megatron_compete.verify.single import load_model, logits

    fresh, trained = load_model(TorchDistCheckpoint(find_checkpoint(checkpoint)), tokenizer_model, trust_remote_code)
    ids = [get_tokenizer().tokenize(text) for text in texts]
    hf_tokenizer = load_hf_tokenizer(hf, "--hf", trust_remote_code)
    hf_model = load_hf_model(hf, "--hf", "float32", trust_remote_code)
    vocab_size = hf_model.config.vocab_size
    _check_ids(ids, {f"--hf {hf}": vocab_size, f"--checkpoint {checkpoint}": get_args().padded_vocab_size})

    totals = _Totals()
    for batch in windows(ids, min(length, get_args().seq_length), limit).split(8):
        inputs, targets = batch[:, :-1], batch[:, 1:]
        ours = logits(trained, inputs)[..., :vocab_size]
        with torch.no_grad():
            theirs = hf_model(inputs).logits
        totals.add(targets, ours, theirs, untrained=logits(fresh, inputs)[..., :vocab_size])
    same_ids = all(hf_tokenizer(text)["input_ids"] == own for text, own in zip(texts, ids))
    return totals.comparison(same_ids, vocab_size)


def _check_ids(ids: list[list[int]], sizes: dict[str, int]) -> None:
    largest = max((max(document) for document in ids if document), default=0)
    for whose, size in sizes.items():
        if largest >= size:
            raise CompeteError(f"{whose} embeds {size} ids, and the training tokenizer gives the text id {largest}")


class _Totals:
    """Sums over windows of what `Comparison` averages."""

    def __init__(self) -> None:
        self.tokens, self.max, self.sums = 0, 0.0, torch.zeros(5, dtype=torch.float64)

    def add(self, targets: Tensor, ours: Tensor, theirs: Tensor, untrained: Tensor) -> None:
        check_finite(ours, "logits of --checkpoint")
        check_finite(theirs, "logits of --hf")
        self.max = max(self.max, largest_difference(ours, theirs, "logits"))
        difference = (ours - theirs).abs()
        self.tokens += targets.numel()
        per_token = [
            difference.mean(-1).sum(),
            (ours.argmax(-1) == theirs.argmax(-1)).sum(),
            *(F.cross_entropy(one.flatten(0, 1), targets.flatten(), reduction="sum") for one in (untrained, ours, theirs)),
        ]  # fmt: skip
        self.sums += torch.stack([value.double() for value in per_token])

    def comparison(self, same_ids: bool, vocab_size: int) -> Comparison:
        difference, top1, *_ = (self.sums / self.tokens).tolist()
        untrained, ours, theirs = (self.sums[2:] / self.tokens).exp().tolist()
        return Comparison(self.tokens, self.max, difference, top1, same_ids, vocab_size, untrained, ours, theirs)


def _rows(found: Comparison) -> Iterator[tuple[str, str]]:
    yield "tokens compared", f"{found.tokens:,}"
    yield "largest logit difference", f"{found.max_logit_difference:.2e}"
    yield "mean logit difference", f"{found.mean_logit_difference:.2e}"
    yield "same preferred token", f"{found.top1_agreement:.2%}"
    yield "same token ids", "yes" if found.same_ids else "NO"
    yield "perplexity untrained", f"{found.perplexity_untrained:.1f}"
    yield "perplexity Megatron", f"{found.perplexity_megatron:.2f}"
    yield "perplexity Hugging Face", f"{found.perplexity_hf:.2f}"


def inspect(checkpoint: Path | None, hf: Path | None, read: bool) -> None:
    """Print what each folder holds and all that is wrong with it.

    Raises:
        CompeteError: something is wrong with one of them.
    """
    from megatron_compete.checkpoint.integrity import inspect_hf, inspect_torch_dist
    from megatron_compete.checkpoint.location import find_checkpoint

    found = [] if checkpoint is None else [inspect_torch_dist(find_checkpoint(checkpoint), read)]
    found += [] if hf is None else [inspect_hf(hf, read)]
    for one in found:
        print(one)
        for line in (*one.problems, *(f"note: {note}" for note in one.notes)):
            print(f"  {line}")
    damaged = [one for one in found if one.problems]
    if damaged:
        raise CompeteError(f"{damaged[0].folder} is damaged: {damaged[0].problems[0]}. Copy or convert it again")


def compare_and_judge(options: VerifyOptions, checkpoint: Path, hf: Path, texts: list[str]) -> None:
    """Compare and print; another model is an error."""
    from megatron_compete.launch import cpu_backend as cpu
    from megatron_compete.launch.launchers import silence_cpu_warnings

    if cpu.is_needed():
        silence_cpu_warnings()
        cpu.activate()
    if options.json:
        options.json.unlink(missing_ok=True)  # an earlier comparison's numbers are not this one's
    found, shown = _compare(options, checkpoint, hf, texts)
    for name, value in shown:
        print(f"{name:<26}{value}")
    if options.json:
        write_whole(options.json, json.dumps(asdict(found), indent=2) + "\n")
    _judge(found, options.tolerance, hf)


def _compare(
    options: VerifyOptions, checkpoint: Path, hf: Path, texts: list[str]
) -> tuple[Comparison | VisionComparison, Iterable[tuple[str, str]]]:
    """What was found, and the lines that say it."""
    from megatron_compete.checkpoint.location import find_checkpoint
    from megatron_compete.checkpoint.reader import TorchDistCheckpoint

    opened = TorchDistCheckpoint(find_checkpoint(checkpoint))
    limit, length, trust = options.windows, options.length, options.trust_remote_code
    if is_vision_language(opened.arguments):
        if not takes_pictures(hf):
            raise CompeteError(f"--hf {hf} is a language model, and --checkpoint {checkpoint} takes pictures")
        seen = compare_vision(opened, hf, texts, limit, length, options.tokenizer_model, trust)
        return seen, rows(seen)
    read = compare(checkpoint, hf, texts, limit, options.tokenizer_model, length, trust)
    return read, _rows(read)


def _judge(found: Comparison | VisionComparison, tolerance: float, hf: Path) -> None:
    if not found.same_ids:
        raise CompeteError(f"--hf {hf}: its tokenizer gives other ids than the training tokenizer")
    if not found.max_logit_difference <= tolerance:
        raise CompeteError(f"--hf {hf}: logits differ by {found.max_logit_difference:.2e}, more than --tolerance {tolerance:g}")  # fmt: skip
    if isinstance(found, VisionComparison) and not found.same_generation:
        raise CompeteError(f"--hf {hf}: it generates other tokens than Megatron's model from the same picture")
