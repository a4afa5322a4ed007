"""Triton and CUDA kernels for tensors of a GPU.

Experimental: compiled and interpreted, never run on a GPU (docs/gpu.md).
"""
