"""Triton kernels by interpretation; tests/conftest.py sets TRITON_INTERPRET before anything imports triton."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """The interpreter makes thousands of tiny arrays: threads of torch would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
