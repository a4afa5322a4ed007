"""Triton kernels, one idea a file; installed as `blockzo.kernels`. What starts them is `blockzo.ops.backends.gpu.kernels`.

Importing this package needs no triton; importing a module of it does.
"""
