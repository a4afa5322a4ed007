"""Federated instruction tuning by scalars as a Flower app."""
