"""Weights of 8 and 4 bits: what they hold, and the linear operation and layer on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockzo.contract import MOVED
from blockzo.noise import Noise
from blockzo.ops import perturbed_linear
from blockzo.ops.backends import cpu, reference
from blockzo.ops.quantized import QuantizedWeight, quantize
from blockzo.ops.steps import make_step
from blockzo.perturb.quantized_linear import QuantizedLinear
from tests.cpu.cases import DISTRIBUTIONS, same_bits


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_rounds_to_nearest(bits: int) -> None:
    weight = numbers(9, 33)
    weight[3] = 0.0
    found = quantize(weight, bits)
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / largest
    assert torch.equal(found.scale, scale[:, 0])
    assert bool(((found.dequantize() - weight).abs() <= 0.5001 * scale).all())
    assert torch.equal(found.dequantize().abs().amax(1) / largest, found.scale)
    assert found.data.numel() == (9 * 33 if bits == 8 else 9 * 17)


@pytest.mark.parametrize("bits", [8, 4])
def test_moved_weight_is_exact(isa: str, bits: int) -> None:
    for distribution in DISTRIBUTIONS:
        for rows, width in [(1, 1), (5, 33), (14, 401), (12, 128)]:
            weight = quantize(numbers(rows, width), bits)
            step = make_step(Noise(7, distribution), [3, 3, 0], [0.3, -0.3, 0.0])
            eye = torch.eye(width).expand(3, width, width)
            out = cpu.perturbed_linear(eye, weight, None, 0, step, 9)
            for group, scale in enumerate(step.coefficients):
                z = Noise(7, distribution).sample(9, (rows, width), step.directions[group])
                want = weight.dequantize() + scale * z if scale else weight.dequantize()
                assert same_bits(out[group].t().contiguous(), want + 0.0)


@pytest.mark.parametrize("bits", [8, 4])
def test_equals_the_dequantised_weight_to_the_bit(isa: str, bits: int) -> None:
    weight, x, bias = quantize(numbers(50, 577), bits), numbers(6, 577), numbers(50)
    noise = Noise(7)
    out = perturbed_linear(x, weight, bias, noise, 9, [1, 1], [0.1, -0.1])
    dense = weight.dequantize()
    flat = x.view(2, 3, 577)
    step = make_step(noise, [1, 1], [0.1, -0.1])
    assert same_bits(out, cpu.perturbed_linear(flat, dense, bias, 0, step, 9, "tiles").view(6, 50))
    assert torch.allclose(out, reference.perturbed_linear(flat, weight, bias, 0, step, 9).view(6, 50), atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rank", [None, 2])
def test_there_is_nothing_to_round(rank: int | None, bits: int) -> None:
    """They are moved in float32, whatever is chosen and whatever the input's dtype."""
    weight, x = quantize(numbers(20, 64), bits), numbers(100, 64).bfloat16()
    found = [perturbed_linear(x, weight, None, Noise(7, rank=rank), 9, [1], [1e-3], moved=moved) for moved in MOVED]
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])
    step = make_step(Noise(7), [1], [1e-3])
    wide = [reference.perturbed_linear(x.view(1, 100, 64), weight, None, 0, step, 9, moved=moved) for moved in MOVED]
    assert same_bits(wide[0], wide[1]) and same_bits(wide[0], wide[2])


@pytest.mark.parametrize("bits", [8, 4])
def test_layer(isa: str, bits: int) -> None:
    linear = nn.Linear(65, 30)
    layer = QuantizedLinear.from_linear(linear, bits)
    x = numbers(2, 7, 65)
    want = nn.functional.linear(x, layer.weight.dequantize(), linear.bias)
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert not list(layer.parameters())
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.dequantize().sum(0).expand_as(x), atol=1e-5)
    scale = layer.scale.clone()
    half = layer.to(torch.bfloat16)
    assert torch.equal(half.scale, scale) and half(x.detach().bfloat16()).dtype == torch.bfloat16
    again = QuantizedLinear.from_linear(nn.Linear(65, 30), bits)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight.dequantize(), layer.weight.dequantize())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bits is 3"):
        quantize(numbers(2, 2), 3)
    with pytest.raises(ValueError, match="infinities"):
        quantize(torch.tensor([[float("inf")]]))
    with pytest.raises(ValueError, match="floating point"):
        quantize(torch.zeros(3))
    good = quantize(numbers(4, 6))
    with pytest.raises(ValueError, match="expected contiguous torch.uint8"):
        QuantizedWeight(good.data, good.scale, 4, (4, 6))
    with pytest.raises(ValueError, match="scale is torch.float64"):
        QuantizedWeight(good.data, good.scale.double(), 8, (4, 6))
    with pytest.raises(ValueError, match="start is 5"):
        perturbed_linear(numbers(1, 6), good, None, Noise(1), 5, [0], [0.1], start=5)
