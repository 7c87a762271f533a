"""One audit from the checkpoint to its files."""

import dataclasses
import hashlib
import json
import resource
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from megatron_compete.audit.command import AuditOptions
from megatron_compete.audit.competition import CompetitionPart
from megatron_compete.audit.figures import write_figures
from megatron_compete.audit.model import Model, Source, hugging_face_folder, open_model, open_tokenizer
from megatron_compete.audit.page import write_audit_page
from megatron_compete.audit.parts import Ranks, carry_out
from megatron_compete.audit.results import Audit, LayerAudit, write_audit
from megatron_compete.audit.scores import ScoreFunctions
from megatron_compete.audit.text import Text, TextOptions, read_text
from megatron_compete.audit.use import AgainstPart, UsePart
from megatron_compete.audit.weights import against, geometry
from megatron_compete.common.errors import CompeteError

UNFINISHED = "unfinished"
"""Folder under --out of what an audit needs until it is done."""
PAGE = "audit.html"


def run_audit(options: AuditOptions) -> Audit:
    """Audit one checkpoint; several ranks share the sequences, the first writes.

    Raises:
        CompeteError: a model that cannot be audited, a text that cannot be read, an output in the way.
    """
    torch.set_float32_matmul_precision("highest")  # some images turn TF32 on, with errors of 1e-3
    ranks = Ranks.from_environment()
    scratch = options.out / UNFINISHED
    source = Source(
        options.checkpoints[0], options.iteration, options.tokenizer_model, options.device, options.dtype,
        options.trust_remote_code,
    )  # fmt: skip
    folder = hugging_face_folder(source, scratch, ranks)
    model = open_model(source, folder)
    text = _text(options, model, folder)
    audit, matrices = _Audit(options, ranks, scratch, model, text, folder).carry_out()
    if ranks.is_first:
        write_audit(audit, matrices, options.out)
        write_audit_page(audit, matrices, options.out / PAGE)
        write_figures(audit, options.out)
        shutil.rmtree(scratch, ignore_errors=True)
    ranks.wait()
    return audit


def _text(options: AuditOptions, model: Model, folder: Path) -> Text:
    encode, end = open_tokenizer(model.source, options.tokenizer or folder)
    most = getattr(model.config, "max_position_embeddings", None) or options.seq_length
    wanted = TextOptions(
        options.text, options.tokens, min(options.seq_length, most), options.text_key, options.domain_key
    )
    text = read_text(wanted, encode, end)
    largest = int(text.ids_SL.max())
    if largest >= model.config.vocab_size:
        raise CompeteError(
            f"--text {' '.join(options.text)} has token id {largest}, and {options.checkpoints[0]} embeds "
            f"{model.config.vocab_size}: it was made with another tokenizer"
        )
    return text


class _Audit:
    """What the parts of one audit share."""

    def __init__(
        self, options: AuditOptions, ranks: Ranks, scratch: Path, model: Model, text: Text, folder: Path
    ) -> None:
        self.options, self.ranks, self.scratch, self.model, self.text = options, ranks, scratch, model, text
        self.functions, self.cost = ScoreFunctions(), dict[str, float]()
        self.signature = _signature(options, text, folder)

    def carry_out(self) -> tuple[Audit, dict[str, Tensor]]:
        options, model, text = self.options, self.model, self.text
        use = UsePart(model, text, self.functions, options.micro_batch_size, options.against is not None)
        self._do(use)
        sequences, regretted = (_sequences(n, text) for n in (options.competition_tokens, options.regret_tokens))
        competition = None
        if sequences:
            competition = CompetitionPart(model, text, self.functions, options.micro_batch_size, sequences, regretted)
            self._do(competition)
        layers, matrices = [], dict[str, Tensor]()
        for layer in model.layers:
            found = {"coactivation": use.coactivation(layer)}
            parts = {}
            if competition is not None:
                geometric, more = geometry(layer, competition.output_similarity(layer))
                parts = {
                    "competition": competition.competition(layer), "regret": competition.regret(layer), "geometry": geometric,
                }  # fmt: skip
                found |= more
            layers.append(LayerAudit(layer.number, layer.name, layer.count, layer.top_k, use.use(layer), **parts))  # type: ignore[arg-type]
            matrices |= {f"{name}.{layer.number}": matrix.float() for name, matrix in found.items()}
        if options.against is not None:
            layers = self._against(options.against, layers, use)
        audit = Audit(
            checkpoint=str(options.checkpoints[0]),
            architecture=type(model.module).__name__,
            dtype=str(next(model.module.parameters()).dtype).removeprefix("torch."),
            parameters=sum(parameter.numel() for parameter in model.module.parameters()),
            layers=layers,
            domains=text.domains,
            tokens_by_domain=use.tokens_by_domain(),
            text=text.digest,
            sequence_length=text.length,
            sequences=len(text.ids_SL),
            loss=use.loss(),
            loss_by_domain=use.loss_by_domain(),
            against=None if options.against is None else str(options.against),
            cost=self.cost | {"peak memory bytes": _peak_memory()},
        )
        return audit, matrices

    def _against(self, checkpoint: Path, layers: list[LayerAudit], use: UsePart) -> list[LayerAudit]:
        """The same layers with what another checkpoint does beside them."""
        start = time.monotonic()
        source = dataclasses.replace(self.model.source, checkpoint=checkpoint, iteration=None)
        self.model.module.to("cpu")  # one model at a time on the accelerator
        other = open_model(source, hugging_face_folder(source, self.scratch, self.ranks))
        forms = [[(layer.number, layer.count, layer.top_k) for layer in one.layers] for one in (self.model, other)]
        if forms[0] != forms[1]:
            raise CompeteError(
                f"--against {checkpoint} has other MoE layers, experts or experts per token than {self.model.source.checkpoint}: "
                "give a checkpoint of the same architecture, or audit both and put their folders side by side"
            )
        choices = {layer.number: use.state[f"choices.{layer.number}"] for layer in other.layers}
        part = AgainstPart(other, self.text, choices, self.options.micro_batch_size)
        self._do(part)
        pairs = zip(layers, self.model.layers, other.layers, strict=True)
        found = [
            dataclasses.replace(one, against=against(layer, twin, *part.shares(layer))) for one, layer, twin in pairs
        ]
        self.cost["against"] = time.monotonic() - start
        return found

    def _do(self, part: UsePart | CompetitionPart | AgainstPart) -> None:
        self.cost[part.name] = carry_out(part, self.scratch, self.signature, self.ranks)


def _sequences(tokens: int, text: Text) -> int:
    """Sequences that hold about so many tokens: at least one, unless none are wanted."""
    return min(len(text.ids_SL), -(-tokens // text.length))


def _signature(options: AuditOptions, text: Text, folder: Path) -> str:
    """Of all that the sums depend on: the options, the text, and the model's files by size and time of change."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors*"))
    known = {name: str(value) for name, value in vars(options).items() if name != "out"}
    return hashlib.sha256(json.dumps([known, files, text.digest]).encode()).hexdigest()


def _peak_memory() -> float:
    """Bytes: of the device where there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
