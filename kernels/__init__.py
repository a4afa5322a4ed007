"""Triton kernels, one idea a file; installed as `blockzo.kernels`. What starts them is `blockzo.ops.backends.gpu.kernels`.

Experimental: compiled and interpreted, never run on a GPU (docs/gpu.md).

Importing this package needs no triton; importing a module of it does.
"""
