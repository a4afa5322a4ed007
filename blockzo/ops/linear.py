"""A linear layer whose weight is moved while it is multiplied, for several directions in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blockzo.contract import check_moved
from blockzo.noise import Noise, check_stream
from blockzo.ops import library, low_rank
from blockzo.ops.backends import choice, reference
from blockzo.ops.params import DTYPES, check_tensor
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.steps import Step, make_step


def perturbed_linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None,
    noise: Noise,
    stream: str | int,
    directions: Sequence[int],
    scales: Sequence[float],
    start: int = 0,
    shape: Sequence[int] | None = None,
    moved: str = "auto",
) -> Tensor:
    """x @ (weight + scale * z).T + bias, with a direction and a scale for each group of rows; nothing is written.

    Args:
        x: [..., K]; its rows (all dimensions but the last, flattened) are G equal groups in order.
        weight: [N, K] with unit stride along K: the whole logical tensor or a slice of its rows or columns. Element (n, k) has
            the noise of index `start + n * weight.stride(0) + k`. Or a `QuantizedWeight`: dequantised, then moved; `start` is 0.
        bias: None, [N], or [G, N] (one row a group, already moved).
        directions: G of them, one a group.
        scales: G of them. A scale of 0 leaves the weight of that group as it is.
        start: index of the first element of `weight` in its logical tensor.
        shape: of the logical tensor, on which noise of a low rank depends; that of `weight` where None. Where the noise has a
            rank, `weight` may also be the transpose of a matrix or of a part.
        moved: "float32": a moved 16-bit weight is not rounded (on a GPU: docs/perturbed.md); "rounded": it is, once, to its
            dtype, as a move in place leaves it, and its noise must have full rank; "auto": as is fastest.

    Returns:
        Tensor of shape [..., N] and the dtype of `x`. Sums are float32. With "auto" products are too, and the move is not
        rounded; unless an x86 CPU multiplies 16-bit numbers itself, x has the dtype of the weight and a group has 48
        rows or more (with AVX512-BF16 and no AMX 17): then the moved weight, and where torch multiplies the bias, are rounded to
        that dtype. GPUs multiply 16-bit operands as such and sum in float32 (docs/gpu.md). A group's values do not depend on the
        others; an x that all share (`expand`) GPUs multiply once.

    Raises:
        ValueError: shapes, dtypes or the number of groups do not fit.
    """
    if isinstance(weight, QuantizedWeight):
        if start:
            raise ValueError(f"start is {start}; expected 0 for a quantized weight, which is always whole")
    else:
        _check_weight(weight.t() if getattr(noise, "rank", None) and _turned(weight) else weight, stream, start)
    check_moved(moved)
    groups = len(directions)
    rows, width = weight.shape
    if not x.dim() or x.shape[-1] != width:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [..., {width}] for a weight of {rows} x {width}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype not in DTYPES or tensor.device != weight.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}; expected float32, bfloat16 or float16 on {weight.device}, as "
                "the weight is"
            )
    count = x.numel() // width if width else x.shape[:-1].numel()
    if not groups or count % groups:
        raise ValueError(f"x has {count} rows for {groups} directions; expected equal groups, one a direction")
    if bias is not None and bias.shape not in ((rows,), (groups, rows)):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({rows},) or ({groups}, {rows})")
    step = make_step(noise, directions, scales)
    if step.rank:
        step = step.of_shape(low_rank.named_shape(weight, start, shape))
    flat = x.reshape(groups, count // groups, width)
    with torch.no_grad():
        if step.rank:
            if moved == "rounded" and not isinstance(weight, QuantizedWeight) and weight.dtype != torch.float32:
                raise ValueError(
                    f"moved is 'rounded' for noise of rank {step.rank}, whose product moves no weight; expected 'auto' or "
                    "'float32', or a product of `perturbed_copy`"
                )
            found = low_rank.linear(flat, weight, bias, start, step, check_stream(stream))
            if found is None:
                raise ValueError(
                    f"weight of shape {tuple(weight.shape)} from index {start} is no part of rows and columns of a matrix with "
                    f"{step.width} columns; expected one for noise of rank {step.rank}"
                )
            return found.view(*x.shape[:-1], rows)
        if isinstance(weight, QuantizedWeight):
            backend = choice.for_tensor(weight.data) if rows and width and count else reference
            out = backend.perturbed_linear(flat, weight, bias, start, step, check_stream(stream), moved=moved)
        else:
            out = moved_linear(flat, weight, bias, start, check_stream(stream), step, moved)
    return out.view(*x.shape[:-1], rows)


def whole_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, stream: int, step: Step, moved: str = "auto"
) -> Tensor:
    """`perturbed_linear` by a whole parameter that was checked when it was indexed (`perturb.Index`), without gradients.

    Args:
        x: [..., K] in the dtype of `weight`.
        bias: None, [N] or [groups, N].
        step: of full rank.
    """
    rows, width = weight.shape
    shape = x.shape
    if x.device != weight.device or not (bias is None or bias.shape[-1] == rows):
        raise ValueError(
            f"x is on {x.device} and bias {None if bias is None else tuple(bias.shape)}; expected them on {weight.device}, as "
            f"the weight is, and {rows} elements of bias"
        )
    groups = len(step.directions)
    if len(shape) == 3 and shape[0] == groups:
        return moved_linear(x, weight, bias, 0, stream, step, moved)
    count = x.numel() // width if width else shape[:-1].numel()
    out = moved_linear(x.reshape(groups, count // groups, width), weight, bias, 0, stream, step, moved)
    return out.view(*shape[:-1], rows)


def moved_linear(
    flat: Tensor, weight: Tensor, bias: Tensor | None, start: int, stream: int, step: Step, moved: str = "auto"
) -> Tensor:
    """`perturbed_linear` of what was checked: x [groups, tokens, K] -> [groups, tokens, N], noise of full rank, no gradients.

    Where nobody looks at operations (no compiler, no mode, no transform), it goes to the backend without torch's dispatch, which
    is a tenth of the host's work for a small layer.
    """
    if plainly_eager(flat, weight) and flat.numel() and weight.numel():
        return choice.for_tensor(weight).perturbed_linear(flat, weight, bias, start, step, stream, moved=moved)
    numbers = library.signed(step.seed), step.distribution, step.directions, step.coefficients
    found: Tensor = torch.ops.blockzo.perturbed_linear(flat, weight, bias, start, stream, *numbers, moved)
    return found


def plainly_eager(*tensors: Tensor) -> bool:
    """Would an operation on these go straight to its implementation?"""
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return False
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.jit.is_tracing()
    )


def _turned(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.shape[1] > 1 and weight.stride(1) != 1 and weight.stride(0) == 1


def _check_weight(weight: Tensor, stream: str | int, start: int) -> None:
    check_tensor(str(stream), weight)
    if weight.dim() != 2 or (weight.shape[1] > 1 and weight.stride(1) != 1):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and strides {weight.stride()}; expected [N, K] with unit stride along K"
        )
    last = start + (weight.shape[0] - 1) * weight.stride(0) + weight.shape[1]
    if start < 0 or last >= 1 << 63:
        raise ValueError(
            f"start is {start} for a weight of shape {tuple(weight.shape)}; indices must lie in [0, 2**63)"
        )
