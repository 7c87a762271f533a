"""What conversions are told, apart from the modules that do them: these import torch, which takes seconds."""

import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from megatron_compete.common.command_line import check_options, flag_of, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import Part

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LEAST_TOP_K = 2

FamilyName = Literal[
    "mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "deepseek_v2", "glm4_moe", "qwen3_next", "gpt_oss", "nemotron_h",
    "llama", "mistral", "qwen3", "qwen2", "competesmoe",
]  # fmt: skip
"""Names of `families.FAMILIES`, in its order."""


def parse_size(text: str, flag: str = "--max-shard-size") -> int:
    """Bytes of `5GB`, `500MB`, `2GiB` or a plain number.

    Raises:
        CompeteError: not a size.
    """
    found = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", text.strip())
    if not found or found[2].upper() not in UNITS or int(found[1]) == 0:
        raise CompeteError(f"{flag} {text} is not a size: give 5GB, 500MB or bytes")
    return int(found[1]) * UNITS[found[2].upper()]


def _parse_file_size(text: str) -> int:
    return parse_size(text, "--max-file-size")


@dataclass(frozen=True)
class Export:
    """A Megatron checkpoint to convert, and where to."""

    checkpoint: Path
    """A `--save` folder, or one iteration's folder in it."""
    output: Path
    """Folder to write; its parent is made where missing."""
    iteration: int | None = None
    """Which iteration of a `--save` folder; None is the latest."""
    force: bool = False
    """Replace an earlier export."""
    family: FamilyName | None = None
    """Architecture to write (default: the first that expresses the model exactly)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights (default: the checkpoint's)."""
    tokenizer_model: Path | None = None
    """SentencePiece model or folder of a Hugging Face tokenizer (default: the one trained with)."""
    image_processor: Path | None = option(None, metavar="DIR")
    """Folder of a vision-language model's preprocessor_config.json (default: what it was trained with)."""
    no_tokenizer: bool = False
    """Write weights and configuration alone."""
    verify_text: Path | None = option(None, metavar="FILE")
    """Text, .jsonl or plain, on which the tokenizers must agree too, beside the built-in strings."""
    drop_mtp: bool = False
    """Leave out layers for multi-token prediction, as transformers does when it loads them."""
    max_shard_bytes: int = option(5 * 10**9, "--max-shard-size", metavar="SIZE", parse=parse_size, shown="5GB")
    """Size of a safetensors file at most."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Upcycling:
    """What becomes of every MLP."""

    experts: int = option(
        MISSING,
        "--upcycle-experts",
        metavar="E",
        help="make a mixture of E experts of a dense model (Llama, Mistral, Qwen2, Qwen3)",
    )
    """E: --num-experts of the mixture."""
    top_k: int | None = option(None, metavar="K", help="experts a token takes (default: 2 * granularity)")
    """K: --moe-router-topk; None takes 2 copies of the dense MLP, 2 * granularity, or all if there is but one."""
    granularity: int = option(1, metavar="G", help="cut each MLP into G slices, an expert holds one")
    """G: slices of the MLP; its width is divided by it."""
    noise: float = option(0.0, metavar="STD")
    """Standard deviation of what is added to all copies but the first, as a share of each matrix's own; the function is
    then not kept."""
    router_init: Literal["normal", "orthogonal", "zeros"] = "normal"
    """How the router's rows start: `normal`, `orthogonal` (directions that share nothing) or `zeros`."""
    router_std: float = option(0.02, metavar="STD")
    """Standard deviation of the router's weights."""
    seed: int = option(1234, help="of router and noise")
    inexact: bool = option(False, help="allow numbers with which the dense model's function is not kept")
    """Also do what does not keep the dense model's function."""
    experts_in: tuple[Part, ...] | None = None
    """Parts of a vision-language model that become mixtures: vision, projector, language (default: vision projector)."""

    @property
    def k(self) -> int:
        """The number of experts a token takes."""
        return self.top_k or min(2 * self.granularity, self.experts)

    @property
    def exact(self) -> bool:
        """Whether the mixture computes what the dense model does."""
        return not self.noise and not self.k % self.granularity

    def check(self) -> None:
        """Raise a `CompeteError` for numbers of which no mixture can be made, or none with the dense model's function."""
        experts, k, granularity = self.experts, self.k, self.granularity
        if granularity < 1 or experts < granularity or experts % granularity:
            raise CompeteError(
                f"--upcycle-experts {experts} cannot hold --granularity {granularity} slices equally often: "
                "make the first a multiple of the second"
            )
        if not LEAST_TOP_K <= k <= experts:
            raise CompeteError(
                f"--top-k {k} has to be {LEAST_TOP_K} to --upcycle-experts {experts}: a single expert's weight is always 1"
            )
        check_options(self)
        if self.noise < 0 or self.router_std <= 0:
            raise CompeteError(f"--noise {self.noise} and --router-std {self.router_std} cannot be negative")
        if self.inexact:
            return
        if k % granularity:
            raise CompeteError(
                f"--top-k {k} is no multiple of --granularity {granularity}: a token would get some slices more often "
                "than others, and the function would change. Give a multiple, or --inexact"
            )
        if granularity > 1 and self.router_init == "zeros":
            raise CompeteError(
                f"--router-init zeros with --granularity {granularity}: all experts tie, and which slices a token gets "
                "is chance. Take normal or orthogonal, or give --inexact"
            )


@dataclass(frozen=True)
class Import:
    """A model to make a checkpoint of that training starts from, and where to."""

    checkpoint: Path
    """A Hugging Face folder; with `source` "megatron" a --save folder, or one iteration's folder in it."""
    output: Path
    """Folder to write: what a trainer is given as --load or --pretrained-checkpoint."""
    source: Literal["hf", "megatron"] = option("hf", "--from", help="what --checkpoint is")
    iteration: int | None = None
    """Which iteration of a --save folder; None is the latest."""
    force: bool = False
    """Replace an earlier import."""
    upcycling: Upcycling | None = None
    """Make a mixture of experts of a dense model."""
    drop_mtp: bool = False
    """Leave out layers for multi-token prediction, as transformers does."""
    vision_tower: Path | None = option(None, metavar="DIR")
    """Hugging Face folder of a SigLIP or CLIP tower to put before the language model."""
    projector: Path | None = option(None, metavar="PATH")
    """Projector between the two: a .safetensors file, or a LLaVA's folder (default: a new one)."""
    vision_feature_layer: int | None = option(None, metavar="N")
    """The tower's states that the projector takes: those behind layer N, or counted from the last (default: -2)."""
    image_token: str | None = option(None, metavar="TOKEN")
    """Token that stands for a picture, made where the tokenizer has none of the name (default: <image>)."""
    file_bytes: int = option(4 * 10**9, "--max-file-size", metavar="SIZE", parse=_parse_file_size, shown="4GB")
    """Size of a file of the checkpoint at most."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.drop_mtp and self.source != "hf":
            raise CompeteError("--drop-mtp is of a Hugging Face folder: it goes with --from hf")
        if self.vision_tower is not None and self.source != "hf":
            raise CompeteError(
                f"--vision-tower {self.vision_tower} is put before a Hugging Face model: it goes with --from hf"
            )
        for name in ("projector", "vision_feature_layer", "image_token"):
            if self.vision_tower is None and getattr(self, name) is not None:
                raise CompeteError(
                    f"{flag_of(Import, name)} is of a model that is put together: it goes with --vision-tower"
                )
