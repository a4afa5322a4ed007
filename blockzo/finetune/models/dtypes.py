"""Types that weights are trained in, by name: the command line knows them without torch."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"
"""The dtype that suits the device, and the device that there is."""

QUANTIZED = {
    "int8": "",
    "int4": "a scale a row, by kernels of our own",
    "bnb-int8": "",
    "bnb-nf4": "bitsandbytes",
    "torchao-int8": "",
    "torchao-int4": "torchao",
}
"""Forms of a frozen base in few bits."""
