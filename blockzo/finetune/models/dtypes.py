"""Types that weights are trained in, by name: the command line knows them without torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")
