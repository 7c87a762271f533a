"""What is written chunk by chunk is read back whole, by this package's reader and by Megatron's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_compete.checkpoint.integrity import inspect_torch_dist
from megatron_compete.checkpoint.location import find_checkpoint
from megatron_compete.checkpoint.megatron_writer import Chunk, write_release
from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from tests.ranks import run_rank

EXPERTS_LEFH = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
TABLE_VH = torch.arange(42, dtype=torch.bfloat16).view(7, 6)


def chunks(made: list[str] | None = None) -> list[Chunk]:
    """Experts in a chunk each, a table in one; `made` notes the order in which they are asked for."""

    def maker(tensor: torch.Tensor, name: str) -> Callable[[], torch.Tensor]:
        def make() -> torch.Tensor:
            if made is not None:
                made.append(name)
            return tensor

        return make

    experts = [
        Chunk("experts", (layer, one), (3, 4), (5, 6), torch.float32, maker(EXPERTS_LEFH[layer, one], f"{layer}.{one}"))
        for layer in range(3)
        for one in range(4)
    ]
    return [*experts, Chunk("table", (), (), (7, 6), torch.bfloat16, maker(TABLE_VH, "table"))]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made: list[str] = []
    files = write_release(tmp_path, {"num_layers": 3}, chunks(made), file_bytes=300)
    assert files == 7  # two experts of 120 bytes in a file, then the table
    assert made == [f"{layer}.{one}" for layer in range(3) for one in range(4)] + ["table"]
    checkpoint = TorchDistCheckpoint(find_checkpoint(tmp_path))
    assert (checkpoint.arguments, checkpoint.iteration) == ({"num_layers": 3}, 0)
    assert checkpoint.read("experts").equal(EXPERTS_LEFH)
    assert checkpoint.read("experts", (1, 2)).equal(EXPERTS_LEFH[1, 2])
    assert checkpoint.read("table").equal(TABLE_VH)
    assert inspect_torch_dist(checkpoint.folder, read=True).problems == []


def load_with_megatron(folder: str) -> tuple[torch.Tensor, dict]:
    """A slice that lies across chunks, and the common state."""
    torch.distributed.init_process_group("gloo")
    from megatron.core.dist_checkpointing import ShardedTensor

    wanted = ShardedTensor.from_rank_offsets("experts", torch.empty(1, 4, 5, 3), (0, 2, 3), (3, 1, 2))
    state = dist_checkpointing.load({"part": wanted}, folder, validate_access_integrity=False)
    return state.pop("part"), {**state, "args": vars(state["args"])}


def test_megatron_reads_it(tmp_path: Path) -> None:
    write_release(tmp_path, {"num_layers": 3}, chunks())
    part, common = run_rank(load_with_megatron, str(tmp_path / "release"))
    assert part.equal(EXPERTS_LEFH[2:3, ..., 3:])
    assert common == {"args": {"num_layers": 3}, "checkpoint_version": 3.0, "iteration": 0}


@pytest.mark.parametrize("left_out", [0, 5])
def test_a_piece_that_is_missing_is_no_checkpoint(tmp_path: Path, left_out: int) -> None:
    some = chunks()
    del some[left_out]
    with pytest.raises(ValueError, match="global plan"):
        write_release(tmp_path, {}, some)
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()


def test_a_piece_of_another_shape_is_a_mistake(tmp_path: Path) -> None:
    wrong = Chunk("table", (), (), (7, 6), torch.bfloat16, lambda: TABLE_VH.float())
    with pytest.raises(Exception, match="was made as"):
        write_release(tmp_path, {}, [wrong])
