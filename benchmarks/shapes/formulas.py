"""What a step costs, from the numbers of the architecture alone: nothing here asks the library.

A multiply and an add are two FLOPs; matrix products and attention count, element-wise work does not.

    layer  = 2 n (2 d d + 2 d d_kv + m d f) + 4 n T d      n = B T tokens; m = 2 matrices of the MLP, 3 where it is gated
    head   = 2 B d V', for V' label words, + 2 B d d where the head has a matrix of its own (RoBERTa)
    MeZO 2 F; n-SPSA 2 n F; one-sided and FZOO (n + 1) F; SPZO, one outer direction, K inner ones: 2 F1 + 2 K F2

The attention of all T x T pairs counts, as it is computed. Against n-SPSA with K directions SPZO saves, by the paper
(arXiv 2502.10239),

    2 K (F1 + F2) / (2 F1 + 2 K F2) = 1 / (alpha / K + 1 - alpha),    alpha = F1 / (F1 + F2)
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.shapes.models import WORDS, Shape

STATES = {"SGD": 0, "AdamW": 2}
"""Numbers that an optimiser keeps a weight, in the weight's dtype."""


@dataclass(frozen=True)
class Method:
    """One method at one setting: forwards of the early and of the late block, and what the library calls it.

    Attributes:
        split: where SPZO cuts, a share of the layers, 1.0: before the head. None: the model is one block.
    """

    name: str
    early: int
    late: int
    split: float | None = None

    @property
    def case(self) -> str:
        if self.split is None:
            return self.name
        return f"{self.name} cut {'head' if self.split == 1.0 else f'{self.split:g}'}"


SPLITS, INNER = (0.25, 0.5, 0.75, 1.0), (2, 4, 8)
WHOLE = (
    Method("MeZO", 2, 2),
    Method("n-SPSA 4", 8, 8),
    Method("one-sided 5", 6, 6),
    Method("FZOO 8", 9, 9),
)
METHODS = {
    method.case: method
    for method in (*WHOLE, *(Method(f"SPZO 1 x {k}", 2, 2 * k, split) for split in SPLITS for k in INNER))
}


def layer_flops(shape: Shape, rows: int, tokens: int) -> int:
    n, d, narrow = rows * tokens, shape.width, shape.kv_heads * shape.head_width
    matrices = 2 * d * d + 2 * d * narrow + (3 if shape.gated else 2) * d * shape.inner
    return 2 * n * matrices + 4 * n * tokens * d


def head_flops(shape: Shape, rows: int) -> int:
    own = 2 * rows * shape.width**2 if shape.kind == "roberta" else 0
    return own + 2 * rows * shape.width * len(WORDS)


def block_flops(shape: Shape, split: float | None, rows: int, tokens: int) -> tuple[int, int]:
    """Forward FLOPs of the layers before the cut, and of the rest."""
    before = 0 if split is None else round(split * shape.layers)
    layer = layer_flops(shape, rows, tokens)
    return before * layer, (shape.layers - before) * layer + head_flops(shape, rows)


def step_flops(shape: Shape, method: Method, rows: int, tokens: int) -> int:
    early, late = block_flops(shape, method.split, rows, tokens)
    return method.early * early + method.late * late


def saving(shape: Shape, method: Method, rows: int, tokens: int) -> float:
    """The paper's: FLOPs of n-SPSA with as many directions of the late block over those of SPZO."""
    early, late = block_flops(shape, method.split, rows, tokens)
    alpha, inner = early / (early + late), method.late / method.early
    return 1 / (alpha / inner + 1 - alpha)


def parameters(shape: Shape) -> int:
    """All of them, tied ones once: tables, then matrices, biases and norms of the layers, then what comes last."""
    d, narrow, f = shape.width, shape.kv_heads * shape.head_width, shape.inner
    matrices = 2 * d * d + 2 * d * narrow + (3 if shape.gated else 2) * d * f
    if shape.gated:  # LLaMA: two norms a layer and one last, no bias
        return shape.vocabulary * d + shape.layers * (matrices + 2 * d) + d
    small = 2 * d + 2 * narrow + f + d + 4 * d
    tables = (shape.vocabulary + shape.positions) * d
    if shape.kind == "opt":  # two more positions; one last norm
        return tables + 2 * d + shape.layers * (matrices + small) + 2 * d
    # RoBERTa: one type, the norm of the tables, and the head's matrix, norm and biases
    return tables + d + 2 * d + shape.layers * (matrices + small) + d * d + 3 * d + shape.vocabulary


def saved_numbers(shape: Shape, rows: int, tokens: int) -> int:
    """Numbers that backpropagation keeps of all layers, after Korthikanti et al. (arXiv 2205.05198), without dropout.

    A layer: its input, both norms' outputs, queries, keys and values, attention's output, the sum before the second norm (7 d,
    the narrow heads counted as such), the MLP's inner values before and after the activation (2 f, 4 f where it is gated), and
    what its norms and sums keep besides (about 2 d). Attention keeps no T x T matrix (it is made again).
    """
    narrow = shape.kv_heads * shape.head_width
    layer = 7 * shape.width + 2 * narrow + (4 if shape.gated else 2) * shape.inner
    return rows * tokens * shape.layers * layer


def first_order_bytes(shape: Shape, optimizer: str, rows: int, tokens: int) -> int:
    """Peak of training all weights: weights, gradients, states, and what is saved for the backward pass or, where it is more,
    what the optimiser makes for its largest tensor (the table of words).
    """
    size = shape.dtype.itemsize
    held = (2 + STATES[optimizer]) * parameters(shape)
    temporary = shape.vocabulary * shape.width if STATES[optimizer] else 0
    return size * (held + max(saved_numbers(shape, rows, tokens), temporary))
