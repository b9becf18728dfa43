"""Matrix products by name of their arithmetic, each behind a probe: does it exist here, and does it sum as
the error bounds assume?

float32 has two ways on a CPU: `torch.mm` (MKL or OpenBLAS) and oneDNN's linear, which is true float32 too and
up to 2.3 times as fast where MKL does not use the whole width of the processor's vectors. int8 and oneDNN are
private names of torch; they are named here and nowhere else.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Arithmetic = Literal["fp32", "bf16", "int8"]
EPS = 2.0**-24
"""unit roundoff of float32"""
_TURNS = 4
"""products timed of each way; the best counts"""


@runtime_checkable
class Product(Protocol):
    """left [m k] times right [n k] transposed, both contiguous: [m n], in `out` or in memory of its own."""

    def __call__(self, left: "Tensor", right: "Tensor", *, out: "Tensor") -> "Tensor": ...


def sum_error(d: int) -> float:
    """Bound on the rounding of a float32 sum of d products of two unit rows, in any order (Higham, sec.
    3.1)."""
    return d * EPS / (1 - d * EPS)


def int8_product(left: "Tensor", right: "Tensor", *, out: "Tensor") -> "Tensor":
    """int8 products summed in int32. Raises AttributeError if this torch has none."""
    import torch

    return torch._int_mm(left, right.t(), out=out)  # pyright: ignore[reportPrivateImportUsage]  (no public one)


def plain_product(left: "Tensor", right: "Tensor", *, out: "Tensor") -> "Tensor":
    """torch's own product, in the type of its arguments."""
    import torch

    return torch.mm(left, right.t(), out=out)


def _onednn_product(left: "Tensor", right: "Tensor", *, out: "Tensor") -> "Tensor":
    """oneDNN's linear; it takes no `out`."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


@cache
def float32_product(device: str) -> Product:
    """The fastest true float32 product on a device. To be used inside `full_precision`."""
    if device != "cpu" or not _is_true_float32(_onednn_product):
        return plain_product
    seconds = {way: _seconds(way) for way in (plain_product, _onednn_product)}
    return min(seconds, key=lambda way: seconds[way])


@cache
def probe(arithmetic: Arithmetic, device: str) -> bool:
    """Whether a product in this arithmetic exists on the device and sums as its margin assumes: checked on
    exact integers.

    int8: extreme values, so that an implementation through 16-bit sums saturates and is found out. bf16:
    integers whose products and sums are exact in float32 and are not in bfloat16.
    """
    import torch

    if arithmetic == "fp32":
        return True
    generator = torch.Generator().manual_seed(0)
    high = 128 if arithmetic == "int8" else 16
    left, right = (torch.randint(1 - high, high, (64, 1024), generator=generator) for _ in range(2))
    left[:32], right[:32] = high - 1, high - 1
    left[:8] *= -1
    exact = left @ right.t()
    dtype = torch.int8 if arithmetic == "int8" else torch.bfloat16
    a, b = left.to(dtype).to(device), right.to(dtype).to(device)
    try:
        product = multiply(arithmetic, device)(a, b, out=output(arithmetic, 64 * 64, device).view(64, 64))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    if arithmetic == "int8":
        return torch.equal(product.cpu(), exact.to(torch.int32))
    return bool(((product.cpu().float() - exact).abs() <= exact.abs() * 2.0**-8).all())


def multiply(arithmetic: Arithmetic, device: str) -> Product:
    """The product of an arithmetic on a device, for operands of its type. To be used inside
    `full_precision`."""
    match arithmetic:
        case "fp32":
            return float32_product(device)
        case "bf16":
            return plain_product
        case "int8":
            return int8_product


def output(arithmetic: Arithmetic, size: int, device: str) -> "Tensor":
    """Memory for a product of `size` entries."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int32}[arithmetic]
    return torch.empty(size, dtype=dtype, device=device)


@cache
def by_speed(device: str) -> tuple[Arithmetic, ...]:
    """Arithmetics that passed the probe, fastest first, by one small product each. A wrong order costs time,
    never a pair."""
    import torch

    seconds: dict[Arithmetic, float] = {}
    for arithmetic in ("fp32", "bf16", "int8"):
        if not probe(arithmetic, device):
            continue
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[arithmetic]
        a = torch.ones(1024, 512).to(dtype).to(device)
        out = output(arithmetic, 1024 * 1024, device).view(1024, 1024)
        way = multiply(arithmetic, device)
        with full_precision():
            seconds[arithmetic] = _best(lambda a=a, out=out, way=way: way(a, a, out=out))
    return tuple(sorted(seconds, key=lambda arithmetic: seconds[arithmetic]))


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in true float32 (no TF32, no bf16 passes), and the caller's choice put back
    afterwards."""
    import torch

    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _is_true_float32(product: Product) -> bool:
    """Whether a product exists, keeps all 24 bits of a float32, and sums within `sum_error`.

    One entry of 12 bits times 12 bits has 24: products through bfloat16, TF32, or a few bfloat16 parts lose
    some of them.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    one = torch.zeros(192, 128)
    one[torch.arange(192), torch.randint(128, (192,), generator=generator)] = 4093.0
    whole = torch.randint(2048, 4096, (160, 128), generator=generator).float()
    left, right = (
        torch.nn.functional.normalize(torch.randn(n, 128, generator=generator)) for n in (192, 160)
    )
    try:
        with full_precision():
            exact = product(one, whole, out=torch.empty(192, 160))
            rounded = product(left, right, out=torch.empty(192, 160))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    error = (rounded.double() - left.double() @ right.double().t()).abs().max()
    return torch.equal(exact.double(), one.double() @ whole.double().t()) and float(error) <= sum_error(130)


def _seconds(product: Product) -> float:
    import torch

    a, out = torch.ones(512, 128), torch.empty(512, 512)
    with full_precision():
        return _best(lambda: product(a, a, out=out))


def _best(run: "Callable[[], Tensor]") -> float:
    """Least seconds of a few products; the first is not counted."""
    run()[0, 0].item()
    best = math.inf
    for _ in range(_TURNS):
        start = time.perf_counter()
        run()[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return best
