"""Numbers as text with commas: one, or one a block."""

from __future__ import annotations

import pytest

from blockzo.finetune.errors import UserError
from blockzo.finetune.number_lists import counts, numbers, places
from blockzo.journal.outside import MOST_BLOCKS


def test_what_is_read() -> None:
    assert numbers("--lr", "1e-6, 2") == [1e-6, 2.0]
    assert counts("--levels", "1,0,4") == [1, 0, 4]
    assert places("--split", "12, 0.5,head") == [12, 0.5, "head"]


@pytest.mark.parametrize(
    ("read", "text", "told"),
    [
        (numbers, "", "--it is ''; expected a number"),
        (numbers, "1,,2", "expected a number"),
        (numbers, "inf", "finite in float32"),
        (numbers, "1e39", "finite in float32"),
        (counts, "1,-1", "whole numbers"),
        (counts, "0.5", "whole numbers"),
        (places, "tail", "--it has 'tail'; expected layer numbers"),
        (places, "nan", "expected layer numbers"),
        (numbers, "1," * MOST_BLOCKS + "1", f"expected {MOST_BLOCKS} numbers at most"),
        (numbers, "1" * 65 * MOST_BLOCKS, f"expected {MOST_BLOCKS} numbers at most"),
    ],
)
def test_what_is_refused_names_the_option(read: object, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read("--it", text)  # type: ignore[operator]
