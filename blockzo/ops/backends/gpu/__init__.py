"""Triton and CUDA kernels for tensors of a GPU. Compiled and interpreted so far, never run on one: experimental (docs/gpu.md)."""
