"""On a real GPU: packed steps, a captured step against `ZO.step`, and a compiled perturbed forward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blockzo as bz
from blockzo.noise import Noise
from blockzo.ops.backends.gpu import cuda, kernels
from blockzo.ops.packed import packed
from blockzo.ops.params import Target
from blockzo.ops.steps import make_step
from blockzo.optim import executor
from tests.cpu.cases import DISTRIBUTIONS, DTYPES, SEED, same_bits, weights

GPUS = list(range(torch.cuda.device_count()))


class Model(nn.Module):
    """Plain layers; heads are of a width that both products and panels serve."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(512, 256)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(256, 16)
        self.to(device=device, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return F.cross_entropy(self.head(hidden).float().flatten(0, 1), ids.flatten() % 16)


def batch(step: int, tokens: int, device: torch.device | str) -> Tensor:
    return torch.randint(0, 512, (2, tokens), generator=torch.Generator().manual_seed(step)).to(device)


@pytest.mark.parametrize("library", ["triton", "cuda"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_moves(dtype: torch.dtype, distribution: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "triton":
        monkeypatch.setattr(kernels, "cuda_library", lambda device: None)
    elif cuda.library() is None:
        pytest.skip("the CUDA library was not built")
    step = make_step(Noise(SEED, distribution), [0, 2**32 - 2], [0.3, -0.1], 0.5, True)
    found = [[weights(70_001, dtype).cuda()] for _ in range(2)]
    kernels.replay_([Target("w", 5, found[0][0])], [packed(step, torch.device("cuda"))])
    kernels.replay_([Target("w", 5, found[1][0])], [step])
    assert same_bits(found[0][0].cpu(), found[1][0].cpu())


@pytest.mark.parametrize("method", [bz.SPSA(2), bz.OneSided(3), bz.SPZO(1, 3)], ids=repr)
def test_a_step_waits_for_the_device_once(method: bz.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    zo = bz.ZO(Model(torch.bfloat16, "cuda"), lambda model, ids: model(ids), method=method, max_group=1)
    ids = batch(0, 8, "cuda")
    zo.step(ids)
    reads, read = [], executor.read_together

    def watched(found):
        torch.cuda.set_sync_debug_mode("default")
        values = read(found)
        torch.cuda.set_sync_debug_mode("error")
        reads.append(len(found))
        return values

    monkeypatch.setattr(executor, "read_together", watched)
    torch.cuda.set_sync_debug_mode("error")
    try:
        zo.step(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == 1


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize("tokens", [8, 100])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_captured_step(dtype: torch.dtype, distribution: str, tokens: int, device: int) -> None:
    place = torch.device("cuda", device)
    runs = []
    for _ in range(2):
        zo = bz.ZO(
            Model(dtype, place),
            lambda m, ids: m(ids),
            method=bz.SPSA(2),
            lr=lambda step: 1e-3 / (1 + step),
            weight_decay=0.1,
            distribution=distribution,
            stochastic_rounding=dtype != torch.float32,
            max_group=1,
        )
        runs.append(zo)
    graphed = bz.GraphedStep(runs[1])
    for step in range(5):
        want, found = runs[0].step(batch(step, tokens, place)), graphed.step(batch(step, tokens, place))
        # both forms run the same kernels, but cuBLAS may choose others for another workspace
        assert found.losses == pytest.approx(want.losses, rel=1e-3)
        runs[0].model.load_state_dict(runs[1].model.state_dict())
    fresh = Model(dtype, place)
    assert bz.digest(fresh) != bz.digest(runs[1].model)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_records_of_captured_steps_replay(distribution: str) -> None:
    zo = bz.ZO(Model(torch.bfloat16, "cuda"), lambda m, ids: m(ids), lr=1e-3, distribution=distribution, max_group=1)
    graphed = bz.GraphedStep(zo)
    records = [graphed.step(batch(step, 8, "cuda")).record for step in range(20)]
    fresh = Model(torch.bfloat16, "cpu")
    bz.replay_(fresh, records)
    assert bz.digest(fresh) == bz.digest(zo.model)


def test_a_captured_step_that_is_not_finite_leaves_the_weights() -> None:
    zo = bz.ZO(Model(torch.float32, "cuda"), lambda m, x: m(x) * float("inf"), max_group=1)
    before, graphed = bz.digest(zo.model), bz.GraphedStep(zo)
    with pytest.raises(ValueError, match="the loss is inf"):
        graphed.step(batch(0, 8, "cuda"))
    assert bz.digest(zo.model) == before


def test_compiled() -> None:
    model, ids = Model(torch.float32, "cuda"), batch(0, 8, "cuda")

    def loss(ids: Tensor, moved) -> Tensor:
        with moved:
            return model(ids)

    compiled = torch.compile(loss, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2**64 - 1):
            found = compiled(ids, bz.perturbed(model, Noise(seed), [3], [0.05]))
            with bz.perturbed(model, Noise(seed), [3], [0.05]):
                want = model(ids)
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
