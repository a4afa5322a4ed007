"""A frozen base in few bits under what is trained, as in QLoRA (arXiv 2305.14314): by our own kernels, bitsandbytes or torchao.

`ops.digest` covers its weights by name, whoever holds them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blockzo.finetune.errors import UserError
from blockzo.perturb.quantized_linear import QuantizedLinear

NF4_BLOCK = 64
GROUP = 32
"""Weights of a row that share a scale in torchao-int4, where a row is made of such groups."""


def quantize_base(model: Any, kind: str, source: str) -> int:
    """Puts layers of `kind` in the place of linear layers that are frozen and not the model's output; how many.

    Raises:
        UserError: the package is missing, there are none, or the model does not run with them.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    places = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not output
        and ".lora_" not in f".{name}."
        and not any(p.requires_grad for p in module.parameters())
    ]
    if not places:
        raise UserError(
            f"--quantize {kind}: {source} has no frozen linear layers beside its output; expected a model of nn.Linear "
            "(GPT-2 has others), or fewer of them under --trainable"
        )
    made = _maker(kind)
    with torch.no_grad():
        for name, module in places:
            owner, _, own = name.rpartition(".")
            try:
                layer = made(module).eval()
            except (RuntimeError, ValueError, NotImplementedError) as error:
                raise UserError(f"--quantize {kind} cannot hold {name} of {source}: {error}; choose another") from error
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
            setattr(model.get_submodule(owner), own, layer)
        _try(model, kind, source)
    return len(places)


def _try(model: Any, kind: str, source: str) -> None:
    ids = torch.arange(3, 7).unsqueeze(0)
    try:
        model(input_ids=ids)
    except Exception as error:
        raise UserError(f"--quantize {kind}: {source} does not run with it ({error}); choose another") from error


def _maker(kind: str) -> Callable[[nn.Linear], nn.Module]:
    package, _, bits = kind.rpartition("-")
    if not package:
        return lambda linear: QuantizedLinear.from_linear(linear, int(bits.removeprefix("int")))
    name = {"bnb": "bitsandbytes", "torchao": "torchao"}[package]
    try:
        __import__(name)
    except ImportError:
        raise UserError(f"--quantize {kind} needs {name}: pip install {name}") from None
    return {"bnb-int8": _bnb_int8, "bnb-nf4": _bnb_nf4, "torchao-int8": _torchao, "torchao-int4": _torchao_int4}[kind]


def _bnb_int8(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    # it says in every forward that it computes in float16
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
    )
    layer.weight = bnb.nn.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    return _quantised(layer, linear)


def _bnb_nf4(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    if linear.in_features % NF4_BLOCK:
        # measured with bitsandbytes 0.50: on a CPU it takes the scales of other blocks where one lies across two rows
        raise ValueError(f"rows of {linear.in_features} weights are no multiple of {NF4_BLOCK}, its block")
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
    )
    layer.weight = bnb.nn.Params4bit(
        linear.weight.detach().clone(), requires_grad=False, compress_statistics=False, quant_type="nf4", module=layer
    )
    # on some CPUs it would pack its weights anew, with rounded scales: another digest than on others
    layer.support_avx512bf16_for_cpu = False
    return _quantised(layer, linear)


def _quantised(layer: Any, linear: nn.Linear) -> nn.Module:
    """bitsandbytes does it when a layer is moved to a device."""
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    found: nn.Module = layer.to(linear.weight.device)
    return found


def _torchao(linear: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return _by_torchao(linear, Int8WeightOnlyConfig())


def _torchao_int4(linear: nn.Linear) -> nn.Module:
    """Its kernels of 4 bits are for GPUs; this form holds them in 8 and runs everywhere."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis, PerGroup

    grouped = linear.in_features % GROUP == 0
    granularity = PerGroup(GROUP) if grouped else PerAxis(0)
    return _by_torchao(
        linear,
        IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 - unknown to torch's stubs
            granularity=granularity,
        ),
    )


def _by_torchao(linear: nn.Linear, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    layer = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    layer.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    quantize_(layer, config, filter_fn=lambda module, name: True)
    return layer


def plain_weight(layer: nn.Module) -> Tensor | None:
    """The weight that a quantised layer stands for, [out, in]; None where it is not quantised."""
    if isinstance(layer, QuantizedLinear):
        return layer.weight.dequantize()
    weight: Any = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(weight.data, state)
        return found
    if type(layer).__name__ == "Linear8bitLt":
        held: Any = layer
        # moved there at the first forward
        bits, scale = (getattr(held.state, name) for name in ("CB", "SCB"))
        bits, scale = (weight.data, weight.SCB) if bits is None else (bits, scale)
        made: Tensor = bits.float() * (scale.float() / 127).unsqueeze(1)
        return made
    if isinstance(weight, nn.Parameter) and type(weight.data) is not Tensor and hasattr(weight, "dequantize"):
        plain: Tensor = weight.dequantize()
        return plain
    return None
