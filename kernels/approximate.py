"""The Gaussian numbers of the noise contract by the GPU's special-function unit, for products that round them to 16 bits anyway.
Moves and updates have no part in it: their bits are the contract's.

Experimental: never run on a GPU.

PTX ISA 9.1 promises errors of at most 2^-22 for lg2.approx (absolute from one half on, else relative), 2^-23 for sqrt.approx
(relative), and 2^-20.5 for sin.approx and cos.approx within a turn. What becomes of them in z: docs/gpu.md.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from blockzo.kernels.noise import INTERPRETED

TURN = tl.constexpr(6.283185307179586)
MINUS_TWO_LN2 = tl.constexpr(-1.3862943611198906)
BELOW_128 = tl.constexpr(128 - 2**-17)


@triton.jit
def log2(x):
    # the interpreter knows no library of the device
    if INTERPRETED:
        return tl.log2(x)
    else:
        return libdevice.fast_log2f(x)


@triton.jit
def sqrt(x):
    # compiled, this is the approximation; the exact one is sqrt_rn
    return tl.sqrt(x)


@triton.jit
def sin(x):
    if INTERPRETED:
        return tl.sin(x)
    else:
        return libdevice.fast_sinf(x)


@triton.jit
def cos(x):
    if INTERPRETED:
        return tl.cos(x)
    else:
        return libdevice.fast_cosf(x)


@triton.jit
def unit(half):
    """(2 n + 1) / 2^17 of 16 bits n, exact: they become the last digits of a number between 128 and 129."""
    return (half | 0x43000000).to(tl.float32, bitcast=True) - BELOW_128


@triton.jit
def approximate_pairs(word):
    """The numbers of `gaussian_pairs`. Bit 31, their sign there, is half a turn here."""
    radius = sqrt(log2(unit(word & 0xFFFF)) * MINUS_TWO_LN2)
    # a quarter of a turn ahead of the contract's angle
    angle = unit(word >> 16) * TURN
    return radius * sin(angle), radius * (cos(angle) * -1.0)
