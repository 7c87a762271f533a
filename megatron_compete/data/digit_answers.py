"""Whether an answer about a picture of digits is right, and what share of them by kind of question.

One rule for the demo and for lmms-eval's task (tests/evaluation/digit_pictures), which runs in an environment without this
package's dependencies: nothing but the standard library is imported here.
"""

from collections import defaultdict
from collections.abc import Iterable


def is_right(given: str, wanted: str) -> bool:
    """Whether an answer is the wanted one, whatever its case, spaces and full stop at the end."""
    return _normalised(given) == _normalised(wanted)


def exact_match(answers: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """Share of right answers by kind of question, and of `all`.

    Args:
        answers: kind of question, given answer, wanted answer.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, given, wanted in answers:
        for name in (kind, "all"):
            right[name].append(is_right(given, wanted))
    return {name: sum(each) / len(each) for name, each in right.items()}


def _normalised(answer: str) -> str:
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()
