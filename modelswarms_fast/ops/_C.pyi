"""Pointers are addresses (``tensor.data_ptr()``), strides count elements; see csrc/bindings.cpp."""

has_cuda: bool
"""Whether the CUDA kernels are compiled in, and not for a newer CUDA than the driver has, if there is a driver."""

class WeightCopier:
    def __init__(self, parts: list[tuple[int, int, int, int, int, int, float]], dtype: int) -> None: ...
    def load(self, row: int) -> None: ...
    def load_tensor(self, row: object) -> bool: ...
    def load_mixture(self, experts: int, stride: int, count: int, mixture: int) -> None: ...

class LoraMerger:
    def __init__(self, parts: list[tuple[int, int, int, int, int, int, int, int, int, float]], dtype: int) -> None: ...
    def load(self, row: int) -> None: ...
    def load_tensor(self, row: object) -> bool: ...
    def load_mixture(self, experts: int, stride: int, count: int, mixture: int) -> None: ...

class View:
    """Bytes [rows, row_bytes] that keep their memory. By the buffer protocol as well."""

    def __dlpack__(self, **asked: object) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Arena:
    """Equal rows of bytes, handed out by number and counted; see csrc/arena.h."""

    rows: int
    row_bytes: int
    stride_bytes: int
    free: int
    """Rows that nobody holds."""
    def __init__(
        self,
        rows: int,
        row_bytes: int,
        stride_bytes: int,
        tier: str = "host",
        folder: str = ".",
        spilled: int = 0,
    ) -> None: ...
    @staticmethod
    def given(
        address: int,
        bytes: int,
        rows: int,
        row_bytes: int,
        stride_bytes: int,
        device: tuple[int, int],
        owner: object,
    ) -> Arena: ...
    def count(self, row: int) -> int: ...
    def acquire(self) -> int: ...
    def retain(self, row: int) -> None: ...
    def release(self, row: int) -> None: ...
    def all(self) -> View: ...

def know_tensors(type: object, exchange_api: object) -> bool: ...
def row_number(rows: object, row: object, /) -> int: ...
def swarm_update_tensors(
    position: object,
    velocity: object,
    personal_best: object,
    global_best: object,
    global_worst: object,
    coefficients: object,
    step_length: object,
    rounding: int,
    coordinate: bool,
    seed: int,
    iteration: int,
    first_column: int,
) -> bool: ...
def swarm_update_rows(
    rows: object,
    table: object,
    global_best: int,
    global_worst: int,
    coefficients: object,
    step_length: object,
    rounding: int,
    coordinate: bool,
    seed: int,
    iteration: int,
    first_column: int,
) -> bool: ...
def swarm_update(
    position: int,
    position_stride: int,
    velocity: int,
    velocity_stride: int,
    personal_best: int,
    personal_best_stride: int,
    global_best: int,
    global_worst: int,
    table: int,
    coefficients: int,
    step_length: float,
    particles: int,
    size: int,
    dtype: int,
    rounding: int,
    coordinate: bool,
    seed: int,
    iteration: int,
    first_column: int,
) -> None: ...
def mix(
    out: int,
    out_stride: int,
    experts: int,
    experts_stride: int,
    mixture: int,
    particles: int,
    count: int,
    size: int,
    dtype: int,
) -> None: ...
def swarm_update_cuda(
    position: int,
    position_stride: int,
    velocity: int,
    velocity_stride: int,
    personal_best: int,
    personal_best_stride: int,
    global_best: int,
    global_worst: int,
    table: int,
    coefficients: int,
    step_length: float,
    particles: int,
    size: int,
    dtype: int,
    stochastic: bool,
    coordinate: bool,
    seed: int,
    iteration: int,
    first_column: int,
    device: int,
    stream: int,
) -> None: ...

class TokenGroups:
    def __init__(self, order: int, count: int, groups: list[tuple[int, int, list[float]]]) -> None: ...

class LowRank:
    def __init__(
        self,
        parts: list[tuple[int, int, int, int, int, int, int, int, float]],
        inputs: int,
        blocks: int,
        dtype: int,
    ) -> None: ...
    @property
    def width(self) -> int: ...
    def add(self, groups: TokenGroups, x: int, x_stride: int, low: int, y: int, y_stride: int) -> None: ...

def row_name(row: int, bytes: int) -> bytes: ...
def swiglu(out: int, given: int, rows: int, width: int, dtype: int) -> None: ...
def mix_cuda(
    out: int,
    out_stride: int,
    experts: int,
    experts_stride: int,
    mixture: int,
    particles: int,
    count: int,
    size: int,
    dtype: int,
    device: int,
    stream: int,
) -> None: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
