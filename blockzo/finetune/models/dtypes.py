"""Types that weights are trained in, by name: the command line knows them without torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
"""The dtype that suits the device, and the device that there is."""
