"""csrc/bindings.cpp: the CPU kernels. Addresses, sizes and codes; `blockzo.ops.backends.cpu` makes them."""

_View = tuple[int, int, int, list[int], list[int]]
_Shard = tuple[_View, int, list[int]]
_Step = tuple[int, int, list[int], list[float], float, bool, bool, int, int]

def compiled() -> list[str]: ...
def available() -> list[str]: ...
def chosen() -> str: ...
def vendor() -> str: ...
def choose(name: str) -> None: ...
def apply(tensors: list[_View], steps: list[_Step], mode: int, threads: int) -> None: ...
def apply_shards(tensors: list[_Shard], steps: list[_Step], mode: int, threads: int) -> None: ...
def apply_scaled(tensors: list[tuple[_Shard, _View]], steps: list[_Step], mode: int, threads: int) -> None: ...
def copy(
    out: int,
    out_dtype: int,
    source: int,
    dtype: int,
    count: int,
    start: int,
    step: _Step,
    stream: int,
    threads: int,
) -> None: ...
def panel(
    out: int,
    out_dtype: int,
    source: int,
    dtype: int,
    rows: int,
    width: int,
    apart: int,
    start: int,
    step: _Step,
    stream: int,
    threads: int,
) -> None: ...
def rows(
    out: int,
    weight: int,
    dtype: int,
    width: int,
    chosen_rows: int,
    count: int,
    step: _Step,
    stream: int,
    threads: int,
) -> None: ...
def linear(
    sizes: tuple[int, int, int, int],
    x: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    noise: tuple[int, int],
    bias: tuple[int, int, int],
    out: int,
    narrow: bool,
    step: _Step,
    stream: int,
    threads: int,
) -> None: ...
def project(tensor: _View, step: _Step, threads: int) -> list[float]: ...
def project_shard(tensor: _Shard, step: _Step, threads: int) -> list[float]: ...
def sample(
    out: int, count: int, start: int, seed: int, distribution: int, stream: int, direction: int, threads: int
) -> None: ...
def factors(out: int, first: int, count: int, seed: int, distribution: int, stream: int, direction: int) -> None: ...
def gather(dense: int, tensor: _View, first: int, count: int) -> None: ...
