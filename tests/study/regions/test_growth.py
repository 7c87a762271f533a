"""Students that begin from another's weights."""

from pathlib import Path

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.study.regions.growth import Weights, grown, read_weights, save_weights


def weights(experts: int, seed: int, hidden: int = 3, width: int = 4) -> Weights:
    random = torch.Generator().manual_seed(seed)
    shapes = {"router.weight": (experts, hidden), "fc1": (experts, width, hidden), "fc2": (experts, hidden, width)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def grow(trained: Weights, fresh: Weights, experts: str | None, router: str | None, noise: float = 0.0) -> Weights:
    return grown(trained, fresh, experts, router, noise, torch.Generator().manual_seed(7))


def test_copies_are_those_of_the_experts_in_turn() -> None:
    trained, fresh = weights(2, 1), weights(5, 2)
    found = grow(trained, fresh, "copies", "random")
    assert torch.equal(found["fc1"], trained["fc1"][[0, 1, 0, 1, 0]])
    assert torch.equal(found["fc2"], trained["fc2"][[0, 1, 0, 1, 0]])
    assert torch.equal(found["router.weight"], torch.cat([trained["router.weight"], fresh["router.weight"][2:]]))


def test_random_experts_are_those_of_a_student_from_scratch() -> None:
    trained, fresh = weights(2, 1), weights(4, 2)
    found = grow(trained, fresh, "random", "copies")
    assert torch.equal(found["fc1"], torch.cat([trained["fc1"], fresh["fc1"][2:]]))
    assert torch.equal(found["router.weight"], trained["router.weight"][[0, 1, 0, 1]])


def test_noise_is_on_copies_alone_and_of_their_size() -> None:
    trained, fresh = weights(1, 1, hidden=40, width=50), weights(8, 2, hidden=40, width=50)
    found = grow(trained, fresh, "copies", "random", noise=0.1)
    difference = found["fc1"] - trained["fc1"]
    assert torch.equal(difference[0], torch.zeros(50, 40))
    assert float(difference[1:].std() / trained["fc1"].std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(found["router.weight"][1:], fresh["router.weight"][1:])


@pytest.mark.parametrize(
    ("before", "after", "how", "words"),
    [
        (4, 2, ("copies", "copies", 0.0), "--num-experts 2 is below the 4 experts"),
        (4, 4, ("copies", "copies", 0.0), "changes nothing"),
        (2, 4, (None, "copies", 0.0), "say by --grow-experts and --grow-router"),
        (2, 4, ("random", "random", 0.1), "--grow-noise 0.1 is of copies"),
    ],
)
def test_what_cannot_be_grown(before: int, after: int, how: tuple[str | None, str, float], words: str) -> None:
    with pytest.raises(CompeteError, match=words):
        grow(weights(before, 1), weights(after, 2), *how)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(CompeteError, match=r"--initial has router.weight of size \(5,\)"):
        grow(weights(2, 1, hidden=5), weights(4, 2), "copies", "copies")


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = weights(2, 1)
    save_weights(written, tmp_path / "a" / "weights.pt")
    found = read_weights(str(tmp_path / "a" / "weights.pt"))
    assert all(torch.equal(found[name], written[name]) for name in written)
    (tmp_path / "other.pt").write_text("no weights")
    for name, words in (("none.pt", "cannot be read"), ("other.pt", "cannot be read")):
        with pytest.raises(CompeteError, match=words):
            read_weights(str(tmp_path / name))
    torch.save({"fc1": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(CompeteError, match="holds no student's weights"):
        read_weights(str(tmp_path / "part.pt"))
