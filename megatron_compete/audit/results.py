"""What an audit found: numbers in `audit.json`, matrices over pairs of experts in `audit.safetensors` beside it.

L MoE layers, E experts, K experts of a token, D domains (text files, or the values of a JSON key).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import open_whole, write_whole

FORMAT = 1
JSON, MATRICES = "audit.json", "audit.safetensors"


@dataclass(frozen=True)
class Interval:
    """A mean over tokens, with what 95 of 100 repetitions with other sequences of such text would hold."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Use:
    """Which experts the router's tokens go to."""

    load: list[float]
    """[E]: share of the assignments; sums to 1."""
    load_by_domain: list[list[float]]
    """[D, E], each row of a domain's own assignments."""
    dead: list[int]
    """Experts with less than a hundredth of an even share."""
    load_entropy: float
    """Entropy of `load` over that of an even one, 0 to 1."""
    token_entropy: float
    """Entropy of a token's scores over that of even ones, mean over tokens, 0 to 1."""
    margin: float
    """Score of the last chosen expert less that of the best left out, mean over tokens; scores of a token sum to 1."""
    domain_information: float
    """Mutual information of a token's domain and its expert, bits, less the bias of a finite sample; at least 0."""
    sequence_entropy: float
    """Entropy of one sequence's load over that of an even one, mean over sequences, 0 to 1."""
    top_pairs: list[tuple[int, int, float]]
    """Pairs of experts that are chosen together most: the share of the first one's tokens that have the second too."""


@dataclass(frozen=True)
class Competition:
    """The router's choice beside two competitions of all experts."""

    tokens: int
    agreement_response: float
    """Share of the K experts that the K strongest responses name too; by chance K / E."""
    agreement_utility: float
    """The same with the K experts whose larger share would lower the loss most, to first order."""
    load_response: list[float]
    """[E]: share of the assignments that responses would make."""
    load_utility: list[float]
    """[E]: the same of utility."""


@dataclass(frozen=True)
class Regret:
    """Change of the loss, nats per token, when one layer's tokens are sent elsewhere and everything else stays."""

    tokens: int
    changes: dict[str, Interval]
    """By where they go: "utility", "response", "drop top-1", "drop top-2", "random", "all". Negative is better."""


@dataclass(frozen=True)
class Experts:
    """How different the experts are; means over all pairs, 1 is the same direction."""

    output_similarity: float
    """Cosine of two experts' outputs for one token, mean over tokens and pairs."""
    weight_similarity: float
    """Cosine of two experts' weights, all matrices as one vector."""
    router_similarity: float
    """Cosine of two experts' rows of the router's weight."""
    router_rank: float
    """Effective rank of the router's weight: exp of the entropy of its normalised singular values."""
    closest_pairs: list[tuple[int, int, float]]
    """Pairs with the most similar outputs."""


@dataclass(frozen=True)
class Against:
    """The same layer of another checkpoint, on the same tokens."""

    same_choice: float
    """Router saturation: share of a token's K experts that the other checkpoint chooses too, mean over tokens."""
    changed_tokens: float
    """Expert change rate: share of the tokens whose set of experts is not the same."""
    router_drift: float
    """Norm of the difference of the routers' weights over the norm of the other's."""
    expert_drift: float
    """The same of all experts' weights."""
    matched: list[int]
    """[E]: expert of the other checkpoint whose weights are most like, one for each."""
    moved: int
    """Experts that are matched with another number than their own."""


@dataclass(frozen=True)
class LayerAudit:
    """One MoE layer; a part that was not asked for is None."""

    layer: int
    """Of the model, from 0."""
    name: str
    """Of the module that holds router and experts."""
    experts: int
    top_k: int
    use: Use
    competition: Competition | None = None
    regret: Regret | None = None
    geometry: Experts | None = None
    against: Against | None = None


@dataclass(frozen=True)
class Audit:
    """A checkpoint on a text."""

    checkpoint: str
    """As it was given."""
    architecture: str
    dtype: str
    parameters: int
    layers: list[LayerAudit]
    domains: list[str]
    tokens_by_domain: list[int]
    text: str
    """Digest of the token ids: audits with the same one saw the same tokens."""
    sequence_length: int
    sequences: int
    loss: Interval
    """Nats per token."""
    loss_by_domain: list[float]
    against: str | None = None
    """The audit that this one was compared to."""
    cost: dict[str, float] = field(default_factory=dict)
    """Seconds of each part, and "peak memory bytes"."""

    @property
    def tokens(self) -> int:
        """Tokens that were predicted."""
        return sum(self.tokens_by_domain)


def write_audit(audit: Audit, matrices: Mapping[str, Tensor], folder: Path) -> None:
    """Write both files; the JSON last, so that its presence says that all is there.

    Args:
        matrices: `MATRIX.LAYER` -> [E, E], with MATRIX one of coactivation (share of the row's tokens that have the column
            too), output_similarity, weight_similarity, router_similarity.
    """
    from safetensors.torch import save

    with open_whole(folder / MATRICES) as file:
        file.write(save({name: matrix.contiguous() for name, matrix in matrices.items()}))
    write_whole(folder / JSON, json.dumps({"format": FORMAT} | asdict(audit), indent=1) + "\n")


def read_audit(path: Path) -> Audit:
    """An audit of its folder, or of its JSON file.

    Raises:
        CompeteError: there is none, or it is of another version.
    """
    file = path / JSON if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes())
        if found.pop("format") != FORMAT:
            raise CompeteError(f"{file} was written by another version: run the audit again")
        return _audit(found)
    except OSError as error:
        raise CompeteError(f"{file} cannot be read: {error.strerror}: give the --out folder of an audit") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompeteError(f"{file} is not an audit: {error}") from error


def read_matrices(folder: Path) -> dict[str, Tensor]:
    """What `write_audit` was given; empty where the file is not there."""
    from safetensors.torch import load_file

    return load_file(folder / MATRICES) if (folder / MATRICES).is_file() else {}


def _audit(found: dict[str, Any]) -> Audit:
    layers = [_layer(one) for one in found.pop("layers")]
    return Audit(layers=layers, loss=Interval(**found.pop("loss")), **found)


def _layer(found: dict[str, Any]) -> LayerAudit:
    use = found.pop("use")
    regret = found.pop("regret")
    parts = {"competition": Competition, "geometry": Experts, "against": Against}
    made = {name: None if found[name] is None else kind(**_pairs(found.pop(name))) for name, kind in parts.items()}
    changes = None if regret is None else {name: Interval(**one) for name, one in regret["changes"].items()}
    return LayerAudit(
        **(found | made),
        use=Use(**_pairs(use)),
        regret=None if regret is None or changes is None else Regret(regret["tokens"], changes),
    )


def _pairs(found: dict[str, Any]) -> dict[str, Any]:
    return {name: [tuple(one) for one in value] if name.endswith("_pairs") else value for name, value in found.items()}
