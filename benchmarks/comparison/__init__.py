"""Estimators against each other on real models and data; the command is `benchmarks/estimators.py`."""
