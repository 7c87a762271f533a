"""Slurm's short forms: `gpu[01-03,7],login` for nodes, `4(x2),3` for tasks on each of them.

Written here because python-hostlist, which reads the first, is under the GPL, and `scontrol show hostnames` is not in containers.
"""

import re

from megatron_compete.common.errors import CompeteError

MOST = 1_000_000
"""Nodes that one range may stand for; Slurm's own limit is lower (65,533)."""


def expand_nodelist(text: str) -> list[str]:
    """Names of nodes in Slurm's order: `n[08-10,12],login` is n08, n09, n10, n12, login.

    Raises:
        CompeteError: brackets that do not close, or a range that is none.
    """
    parts = _split(text)
    names = [name for part in parts for name in _expand(part, text)]
    if not names or ",".join(parts) != text:
        raise CompeteError(f"{text!r} is no list of nodes: Slurm writes them like n1,n[3-5,08]")
    return names


def expand_counts(text: str) -> list[int]:
    """`4(x2),3` as [4, 4, 3].

    Raises:
        CompeteError: it is written otherwise.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part)
        if match is None or int(match[2] or 1) > MOST:
            raise CompeteError(f"{text!r} is no list of tasks per node: Slurm writes them like 4(x2),3")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _split(text: str) -> list[str]:
    """Parts between the commas that are not in brackets."""
    return re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text)


def _expand(part: str, text: str) -> list[str]:
    """Fill in the first bracket, and then what follows it."""
    match = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]+)\](.*))?", part)
    if match is None:
        raise CompeteError(f"{text!r} is no list of nodes: {part!r} does not close its brackets")
    head, ranges, tail = match.groups()
    if ranges is None:
        return [head]
    tails = _expand(tail, text)
    return [f"{head}{number}{rest}" for each in ranges.split(",") for number in _numbers(each, text) for rest in tails]


def _numbers(span: str, text: str) -> list[str]:
    """`08-10` as 08, 09, 10: as many digits as the first has."""
    match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", span)
    if match is None or (match[2] and not 0 <= int(match[2]) - int(match[1]) < MOST):
        raise CompeteError(f"{text!r} is no list of nodes: {span!r} is no range of numbers")
    first, last = int(match[1]), int(match[2] or match[1])
    return [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
