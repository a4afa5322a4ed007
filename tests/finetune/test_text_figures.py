"""Figures of written answers by hand-counted cases."""

from __future__ import annotations

import pytest

from blockzo.finetune.text_figures import best, exact_match, f1, rouge_l


@pytest.mark.parametrize(
    ("written", "right", "exact", "overlap"),
    [
        ("The Trihydrogen cation.", "trihydrogen cation", 1, 1),
        ("12,000 cabs", "12,000", 0, 2 / 3),
        ("a cat sat", "the dog sat down", 0, 2 / 5),
        ("b b c", "b c c", 0, 4 / 6),
        ("", "yes", 0, 0),
        ("the", "a", 1, 1),
    ],
)
def test_exact_match_and_f1_over_plain_words(written: str, right: str, exact: float, overlap: float) -> None:
    assert (exact_match(written, right), f1(written, right)) == (exact, pytest.approx(overlap))


@pytest.mark.parametrize(
    ("written", "right", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("One, two!", "one two three four", 4 / 6),
        ("", "", 1),
        ("x", "", 0),
    ],
)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(written: str, right: str, expected: float) -> None:
    assert rouge_l(written, right) == pytest.approx(expected)


def test_of_several_right_answers_the_best_met_counts() -> None:
    assert best("f1", "a b", ["c", "b"]) == 1.0
