"""Where a model runs, by the name of a device, and the dtype that suits it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from blockzo.finetune.errors import UserError
from blockzo.finetune.models.dtypes import AUTO
from blockzo.finetune.settings import Settings


def find_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the first GPU where torch can use one, else the CPU.

    Raises:
        UserError: this torch or this machine has no such device.
    """
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == AUTO:
        return torch.device("cuda", 0) if there else torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if not there:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU here"
        raise UserError(f"--device is {name}, but {why}; use --device cpu, or a torch for CUDA on a machine with a GPU")
    if number >= there:
        raise UserError(
            f"--device is {name}, but there are {there} GPUs, cuda:0 to cuda:{there - 1}; name one of these"
        )
    return torch.device("cuda", number)


def settled(settings: Settings) -> Settings:
    """With the dtype that stands for `auto` on the settings' device; journals hold this one.

    float32 on a CPU, where 16-bit products are no faster on most; on a GPU bfloat16, or float16 where it has no bfloat16.
    """
    if settings.dtype != AUTO:
        return settings
    device = find_device(settings.device)
    if device.type != "cuda":
        return replace(settings, dtype="float32")
    return replace(settings, dtype="bfloat16" if torch.cuda.is_bf16_supported() else "float16")


def put(model: Any, device: torch.device, source: str, nbytes: int) -> None:
    """Moves a loaded model.

    Args:
        nbytes: of its weights and buffers.

    Raises:
        UserError: they do not fit into the device's free memory.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if nbytes > free:
            raise UserError(
                f"the weights of {source} take {nbytes / 1e9:.2f} GB, {device} has {free / 1e9:.2f} GB free. A model has to "
                "fit on one device: parts on several (a device_map) are not trained. Use --dtype bfloat16, a smaller model, or "
                "--device cpu"
            )
    model.to(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done its work, so that a clock says how long it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
