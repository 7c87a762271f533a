"""How one tensor of Megatron's lies in tensors of Hugging Face's: every form splits, and joins to exactly the same.

Legend: H hidden, D head size, G query groups, N query heads a group, F MLP width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Form(Protocol):
    """A bijection of one stored tensor and a tuple of exported ones; `join(split(x))` is x bit for bit."""

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Megatron's tensor as Hugging Face's; views where possible."""
        ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Hugging Face's tensors as Megatron's."""
        ...


@dataclass(frozen=True)
class Same:
    """The tensor as it is."""

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """The tensor alone."""
        return (stored,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The only part."""
        return parts[0]


SAME = Same()


@dataclass(frozen=True)
class Halves:
    """Gate and up [F, H] of a gated MLP's linear_fc1 [2F, H] (upstream: `MLP`)."""

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Gate, up."""
        return stored.chunk(2)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[gate; up]."""
        return torch.cat(tuple(parts))


@dataclass(frozen=True)
class QueryKeyValue:
    """Queries [G*N*D, ...], keys [G*D, ...] and values [G*D, ...] of linear_qkv [G*(N+2)*D, ...].

    For each group its N query heads, its key head, its value head
    (upstream: `SelfAttention.get_query_key_value_tensors`). Weights and biases alike.
    """

    groups: int
    head: int

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values."""
        rest = stored.shape[1:]
        by_group = stored.view(self.groups, -1, self.head, *rest)  # [G, N + 2, D, ...]
        return tuple(part.reshape(-1, *rest) for part in (by_group[:, :-2], by_group[:, -2], by_group[:, -1]))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """linear_qkv."""
        rest = parts[0].shape[1:]
        by_group = [part.view(self.groups, -1, self.head, *rest) for part in parts]
        return torch.cat(by_group, dim=1).view(-1, *rest)


@dataclass(frozen=True)
class GatedQueryKeyValue:
    """As `QueryKeyValue` with a gate for every query head: queries are [G*N*2D, ...], each head's gate behind it.

    linear_qkv is [G*(2N+2)*D, ...]: for each group its N query heads, their gates, key and value
    (upstream: `SelfAttention.get_query_key_value_tensors` with --attention-output-gate).
    """

    groups: int
    head: int

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Queries with gates, keys, values."""
        rest = stored.shape[1:]
        by_group = stored.view(self.groups, -1, self.head, *rest)  # [G, 2N + 2, D, ...]
        queries, gates = by_group[:, :-2].chunk(2, dim=1)
        both = torch.stack((queries, gates), dim=2)  # [G, N, 2, D, ...]
        return tuple(part.reshape(-1, *rest) for part in (both, by_group[:, -2], by_group[:, -1]))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """linear_qkv."""
        rest = parts[0].shape[1:]
        queries, gates = parts[0].view(self.groups, -1, 2, self.head, *rest).unbind(2)
        by_group = [queries, gates, *(part.view(self.groups, -1, self.head, *rest) for part in parts[1:])]
        return torch.cat(by_group, dim=1).reshape(-1, *rest)


@dataclass(frozen=True)
class GatedDelta:
    """in_proj of a gated delta net, as transformers has it: key head by key head.

    Megatron's rows are all queries, keys, values, gates, betas, alphas (upstream: `GatedDeltaNet`). The first part has for each
    key head its query, its key, the values and the gates of its value heads; the second their betas and alphas.
    """

    key_heads: int
    key_head: int
    value_heads: int
    value_head: int

    @property
    def _rows(self) -> tuple[int, ...]:
        """Of a key head: query, key, values, gates, betas, alphas."""
        heads = self.value_heads // self.key_heads
        return (self.key_head, self.key_head, *[heads * self.value_head] * 2, heads, heads)

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values and gates; betas and alphas."""
        rest = stored.shape[1:]
        whole = stored.split([self.key_heads * rows for rows in self._rows])
        by_head = [part.view(self.key_heads, rows, *rest) for part, rows in zip(whole, self._rows)]
        return tuple(torch.cat(part, dim=1).view(-1, *rest) for part in (by_head[:4], by_head[4:]))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """in_proj."""
        rest = parts[0].shape[1:]
        by_head = torch.cat([part.view(self.key_heads, -1, *rest) for part in parts], dim=1)
        return torch.cat([part.reshape(-1, *rest) for part in by_head.split(self._rows, dim=1)])


@dataclass(frozen=True)
class PlusOne:
    """A norm's weight that Megatron keeps as its distance from one, and Hugging Face does not.

    Hugging Face's number comes back bit for bit where it is bf16 or between 0.5 and 2, others of fp32 to within 6e-8.
    """

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """The weight."""
        return (stored.float() + 1,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Its distance from one."""
        return parts[0].float() - 1


@dataclass(frozen=True)
class Interleaved:
    """Gate and up of all experts, [E, H, 2F] with their columns in turns, of linear_fc1 [E, 2F, H] with their halves.

    Biases [E, 2F] alike.
    """

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """The columns in turns."""
        in_turns = torch.stack(stored.chunk(2, dim=1), dim=2).flatten(1, 2)  # [E, 2F, ...]
        return (in_turns.transpose(1, -1).contiguous() if stored.dim() == 3 else in_turns,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[gate; up] of every expert."""
        rows = parts[0].transpose(1, -1) if parts[0].dim() == 3 else parts[0]
        return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)


@dataclass(frozen=True)
class Transposed:
    """Matrices [E, F, H] of all experts that are stored as [E, H, F]."""

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Every matrix transposed."""
        return (stored.transpose(1, 2).contiguous(),)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Every matrix transposed."""
        return parts[0].transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Token:
    """A class token [H] that Megatron has as [1, 1, H] (upstream: `CLIPViTModel`)."""

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Its numbers."""
        return (stored.flatten(),)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One token of one picture."""
        return parts[0].view(1, 1, -1)


@dataclass(frozen=True)
class Rows:
    """The first `used` rows of a table of `total`; the rest is padding, zeros where they are made."""

    used: int
    total: int

    def split(self, stored: Tensor) -> tuple[Tensor, ...]:
        """Rows in use."""
        return (stored[: self.used],)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows in use and rows of zeros."""
        table = parts[0].new_zeros(self.total, *parts[0].shape[1:])
        table[: self.used] = parts[0]
        return table
