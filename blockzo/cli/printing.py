"""Results for people, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blockzo.journal.outside import printable

NAMES = {"calibrated_accuracy": "calibrated", "auc": "AUC"}


def show(result: Mapping[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, indent=2) if as_json else printable(text, 1 << 20))


def scores(values: Mapping[str, float]) -> str:
    """Held-out figures on one line; the loss after those that people look for first."""
    keys = sorted((key for key in values if key != "rows"), key=lambda key: key in ("loss", "perplexity"))
    return f"{'  '.join(f'{NAMES.get(key, key)} {values[key]:.3f}' for key in keys)}  ({values['rows']} rows)"
