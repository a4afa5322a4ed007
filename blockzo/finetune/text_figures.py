"""How well a written answer meets the right ones: exact match and F1 as SQuAD defines them, ROUGE-L."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

TextFigure = Callable[[str, str], float]
"""(what was written, a right answer) -> a number from 0 to 1."""
PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> list[str]:
    """Words without case, punctuation and articles (Rajpurkar et al., EMNLP 2016, section 6)."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def exact_match(written: str, right: str) -> float:
    """1 where the plain words are the same."""
    return float(plain(written) == plain(right))


def f1(written: str, right: str) -> float:
    """Harmonic mean of precision and recall over the bag of plain words; where one of them has none, whether both have."""
    one, two = plain(written), plain(right)
    if not one or not two:
        return float(one == two)
    same = sum((Counter(one) & Counter(two)).values())
    return 2 * same / (len(one) + len(two))


def rouge_l(written: str, right: str) -> float:
    """F1 over the longest common subsequence of words of letters and digits, without case or stemming (Lin, 2004, section 3)."""
    one, two = (re.findall(r"\w+", text.lower()) for text in (written, right))
    if not one or not two:
        return float(one == two)
    before = [0] * (len(two) + 1)
    for word in one:
        row = [0]
        for place, other in enumerate(two):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
        before = row
    return 2 * before[-1] / (len(one) + len(two))


TEXT_FIGURES: dict[str, TextFigure] = {"f1": f1, "exact_match": exact_match, "rouge_l": rouge_l}
"""Metrics of written text by name; put your own in here."""


def best(figure: str, written: str, right: Sequence[str]) -> float:
    """The figure against the answer that is met best."""
    return max(TEXT_FIGURES[figure](written, one) for one in right)
