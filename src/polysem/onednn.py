"""y = x W^T + b in float32, by the faster of the two libraries that torch carries.

On CPUs with AVX-512 the matrix products of oneDNN can be twice those of MKL at the sizes of a sweep, and both
sum in float32. oneDNN is called directly, per product: `torch.set_float32_matmul_precision`, which would also
choose it, is global, and on some CPUs rounds to bfloat16. Before its first use the call is compared with
float64 on numbers that bfloat16 and TF32 cannot hold; where it is missing or rounds, plain torch is used.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from polysem.profiling import add_product, is_profiled

Gelu = Literal["none", "tanh"]

_PACKED_BYTES = 1 << 30
"""models with larger weights keep them where they are: packing makes a copy"""
_PROBE_RTOL = 1e-5
"""float32 sums of 64 terms are good to 1e-6; TF32 and bfloat16 inputs are not good to 1e-4"""


class Linear:
    """One linear map, prepared for many calls."""

    def __init__(
        self,
        weight: Float[Tensor, "n_out n_in"],
        bias: Float[Tensor, " n_out"] | None,
        *,
        pack: bool,
    ):
        self.bias = None if bias is None else bias.detach()
        self.onednn = weight.device.type == "cpu" and weight.dtype == torch.float32 and onednn_is_exact()
        plain, self.n_out = weight.detach(), len(weight)
        self.weight = _packed(plain) if self.onednn and pack else plain

    def __call__(
        self, x: Float[Tensor, "*rows n_in"], *, bias: bool = True, gelu: Gelu | None = None
    ) -> Float[Tensor, "*rows n_out"]:
        """W x + b; without the bias, or followed by a GELU, if asked for."""
        b = self.bias if bias else None
        if is_profiled():
            add_product(x.numel() // x.shape[-1], x.shape[-1], self.n_out)
        if not self.onednn:
            y = F.linear(x, self.weight, b)
            return y if gelu is None else F.gelu(y, approximate=gelu)
        flat = x.reshape(-1, x.shape[-1])
        y = _pointwise(flat, self.weight, b, gelu)
        return y.reshape(*x.shape[:-1], -1)


class FrozenLinears(TorchFunctionMode):
    """While entered, the linear maps that a model's own modules apply go through the faster library, and so do
    the gradients with respect to their inputs.

    Only float32 maps on the CPU whose weights ask for no gradient, and only where the call is exact; everything
    else is left as it is. Weights stay where they are: nothing is copied.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and onednn_is_exact():
            if func is F.linear and len(args) in (2, 3) and _may_pass(*args):
                return _FrozenLinear.apply(args[0], args[1], args[2] if len(args) == 3 else None)
            if func is torch.addmm and _may_pass(args[1], args[2], args[0]) and args[0].ndim == 1:
                return _FrozenLinear.apply(args[1], args[2].T, args[0])  # GPT-2's maps are stored transposed
        return func(*args, **(kwargs or {}))


class CountedLinears(TorchFunctionMode):
    """While entered, the linear maps that a model's own modules apply are counted in a profile; those that are asked for a
    gradient twice, for the way back."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(args) > 2 and (func is F.linear or func is torch.addmm):
            x, n_out = (args[0], len(args[1])) if func is F.linear else (args[1], args[2].shape[1])
            ways = 2 if torch.is_grad_enabled() and x.requires_grad else 1
            add_product(ways * (x.numel() // x.shape[-1]), x.shape[-1], n_out)
        return func(*args, **(kwargs or {}))


class _FrozenLinear(torch.autograd.Function):
    """y = x W^T + b with the gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        flat = _pointwise(x.reshape(-1, x.shape[-1]), weight, bias, None)
        return flat.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        (of_y,) = gradients
        of_x = _pointwise(of_y.reshape(-1, of_y.shape[-1]), weight.T, None, None)
        return of_x.reshape(*of_y.shape[:-1], -1), None, None


def _may_pass(x: Any, weight: Any, bias: Any = None) -> bool:
    frozen = [part for part in (weight, bias) if part is not None]
    return x.numel() > 0 and all(
        isinstance(part, Tensor) and part.dtype == torch.float32 and part.device.type == "cpu"
        for part in (x, *frozen)
    ) and not any(part.requires_grad for part in frozen)  # fmt: skip


def bare_rate(n_in: int, *, rows: int = 384, rounds: int = 5) -> float:
    """Floating-point operations a CPU second of one product [rows n_in] x [n_in 4 n_in], the best of some rounds."""
    linear, x = Linear(torch.ones(4 * n_in, n_in), None, pack=True), torch.ones(rows, n_in)
    best = float("inf")
    for _ in range(rounds + 1):
        begun = time.process_time()
        linear(x)
        best = min(best, max(time.process_time() - begun, 1e-9))
    return 8.0 * rows * n_in**2 / best


def packs(n_bytes: int) -> bool:
    """Whether weights of this size are worth a second, reordered copy."""
    return n_bytes <= _PACKED_BYTES


@lru_cache(maxsize=1)
def onednn_is_exact() -> bool:
    """Whether this build and machine have the call, and it computes in float32."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(0.5, 1.5, 16 * 64).reshape(16, 64)
    w = torch.linspace(-1.0, 1.0, 32 * 64).reshape(32, 64) + 1e-4
    try:
        y = _pointwise(x, _packed(w), None, None)
    except (AttributeError, RuntimeError, NotImplementedError):  # another build of torch
        return False
    expected = x.double() @ w.double().T
    return bool((y.double() - expected).abs().max() <= _PROBE_RTOL * (x.abs() @ w.abs().T).double().max())


def _packed(weight: Tensor) -> Tensor:
    reorder: Callable[[Tensor], Tensor] = torch.ops.mkldnn._reorder_linear_weight
    return reorder(weight.contiguous())


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None) -> Tensor:
    if gelu is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], gelu)
