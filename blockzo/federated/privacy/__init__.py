"""Clipping, noise and epsilon, and what has been released."""
