"""Baselines in plain torch, written from their papers, so that a reader sees what kernels save (`benchmarks/baselines.py`)."""
