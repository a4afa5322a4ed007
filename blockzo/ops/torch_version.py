"""Importing this refuses a torch that is too old in words, before a name that it lacks does."""

import torch

from blockzo.ops.versions import too_old

if _old := too_old("torch", torch.__version__):
    raise ImportError(_old)
