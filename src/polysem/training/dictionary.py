"""What is learnt: a sparse dictionary's weights, its loss, and the sparse arithmetic of both.

    codes  = select(x W_enc + b_enc)                     k largest of a token, or the B k largest of a batch; then ReLU
    y_hat  = codes W_dec + b_dec (+ x W_skip)            y = x for an autoencoder, another site for a transcoder
    loss   = mean of w(t) |y - y_hat|^2 / total variance + 1/32 of AuxK's share of what is left

A nested (Matryoshka, arXiv 2503.17547) dictionary takes the mean of the loss over prefixes of its latents.
AuxK (Gao et al., arXiv 2406.04093, A.2) lets latents that have not fired for long explain what is left over, so
that they come back to life. Decoder rows keep unit norm, and the part of their gradient along them is taken away.
A few dozen of thousands of latents are active on a token; so only the encoder's product and the choice of the
largest are dense, and decoding and all gradients of the weights go through compressed sparse rows: one dense
product a step instead of five. This module needs torch and nothing of polysem's models, and runs on any device.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Select = Literal["topk", "batchtopk"]

AUXILIARY = 1 / 32
"""weight of the AuxK loss, as in its paper"""


class Codes(NamedTuple):
    """Sparse codes of a batch in compressed rows."""

    crow: Int[Tensor, " batch_and_one"]
    col: Int[Tensor, " n_active"]
    values: Float[Tensor, " n_active"]


@dataclass
class Weights:
    """A dictionary being learnt; the same tensors all along, changed in place by the optimiser."""

    W_enc: Float[Tensor, "d_sae d_in"]
    """rows are latents, unlike in a finished dictionary: sparse gradients add whole rows"""
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_out d_in"] | None = None

    def named(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        found = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return found if self.W_skip is None else {**found, "W_skip": self.W_skip}


def initial(
    *,
    d_in: int,
    d_sae: int,
    mean: Float[Tensor, " d_out"],
    skip: bool,
    generator: torch.Generator,
    autoencoder: bool,
) -> Weights:
    """Random unit decoder rows and the mean as bias; an autoencoder's encoder starts as the decoder's transpose and
    reads the input less its mean.

    Args:
        d_in: width of the input.
        d_sae: number of latents.
        mean: mean of the output.
        skip: give it a linear path beside the latents, zero at first.
        generator: of the device of `mean`.
        autoencoder: whether input and output are one site.
    """
    device, d_out = mean.device, len(mean)
    rows = torch.randn(d_sae, d_out, generator=generator, device=device)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if autoencoder:
        encoder, bias = rows.clone(), -(rows @ mean)
    else:
        encoder = torch.randn(d_sae, d_in, generator=generator, device=device)
        encoder = encoder / encoder.norm(dim=1, keepdim=True)
        bias = torch.zeros(d_sae, device=device)
    path = torch.zeros(d_out, d_in, device=device) if skip else None
    return Weights(encoder, bias, rows, mean.clone(), path)


class _SparseProduct(torch.autograd.Function):
    """codes @ W, with gradients for the codes' values and for W."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, crow: Tensor, col: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(values, crow, col, W)
        return _spread(crow, col, values, len(W)) @ W

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor]:
        values, crow, col, W = ctx.saved_tensors
        (g,) = gradients
        return (
            _products_at(crow, col, g.contiguous(), W),
            None,
            None,
            _gathered(crow, col, values, len(W)) @ g,
        )


class _Selected(torch.autograd.Function):
    """x W^T + b at the chosen latents only: the product is made elsewhere, here are its sparse gradients."""

    @staticmethod
    def forward(
        ctx: Any, chosen: Tensor, crow: Tensor, col: Tensor, x: Tensor, W: Tensor, b: Tensor
    ) -> Tensor:
        ctx.save_for_backward(crow, col, x, W)
        return chosen.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None, Tensor, Tensor]:
        crow, col, x, W = ctx.saved_tensors
        (g,) = gradients
        on_bias = torch.zeros(len(W), dtype=g.dtype, device=g.device).index_add_(0, col, g)
        return None, None, None, None, _gathered(crow, col, g, len(W)) @ x, on_bias


def encode(weights: Weights, x: Float[Tensor, "batch d_in"], *, k: int, select: Select) -> Codes:
    """Sparse codes of a batch, differentiable in the encoder's weights.

    The product is made in bfloat16 on a CPU and in the device's own fast format elsewhere; it decides which
    latents are active and how much.
    """
    with torch.no_grad():
        pre = _fast_product(x, weights.W_enc) + weights.b_enc
        crow, col, chosen = _largest(pre, k=k, select=select)
    values = _Selected.apply(chosen, crow, col, x, weights.W_enc, weights.b_enc)
    return Codes(crow, col, torch.relu(values))


def decode(
    weights: Weights, codes: Codes, x: Float[Tensor, "batch d_in"], *, prefixes: Sequence[int]
) -> list[Float[Tensor, "batch d_out"]]:
    """One reconstruction for every prefix of the latents, the last of all."""
    base = weights.b_dec.expand(len(x), -1)
    if weights.W_skip is not None:
        base = base + x @ weights.W_skip.t()
    found, low = [], 0
    for high in prefixes:
        within = (
            codes.values if len(prefixes) == 1 else codes.values * ((codes.col >= low) & (codes.col < high))
        )
        base = base + _SparseProduct.apply(within, codes.crow, codes.col, weights.W_dec)
        found.append(base)
        low = high
    return found


def auxiliary(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    rest: Float[Tensor, "batch d_out"],
    token_weights: Float[Tensor, " batch"],
    *,
    dead: Bool[Tensor, " d_sae"],
) -> Float[Tensor, ""]:
    """Weighted squared error of the dead latents' best guess at what is left over, as a share of what is left: where
    a few large directions hold nearly all variance the rest is small, and must not be forgotten for that."""
    which = dead.nonzero().flatten()
    pre = x @ weights.W_enc[which].t() + weights.b_enc[which]
    k = min(rest.shape[1] // 2, len(which))
    values, chosen = pre.topk(k, dim=1, sorted=False)
    acts = torch.zeros_like(pre).scatter(1, chosen, torch.relu(values))
    error = (rest - acts @ weights.W_dec[which]).pow(2).sum(dim=1)
    return (error * token_weights).sum() / (rest.pow(2).sum(dim=1) * token_weights).sum()


@torch.no_grad()
def keep_decoder(weights: Weights) -> None:
    """Take the gradient's part along each decoder row away; call between backward and the optimiser's step."""
    gradient = weights.W_dec.grad
    if gradient is not None:
        gradient -= (gradient * weights.W_dec).sum(dim=1, keepdim=True) * weights.W_dec


@torch.no_grad()
def unit_rows(weights: Weights) -> None:
    """Decoder rows back to unit norm; call after the optimiser's step."""
    weights.W_dec /= weights.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8)


def _fast_product(x: Tensor, W: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return (x.bfloat16() @ W.bfloat16().t()).float()
    return x @ W.t()


def _largest(pre: Tensor, *, k: int, select: Select) -> tuple[Tensor, Tensor, Tensor]:
    """(row starts, latents, values) of what is active; latents of a row ascend."""
    if select == "topk":
        col = pre.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        crow = torch.arange(0, pre.shape[0] * k + 1, k, device=pre.device)
        return crow, col.flatten(), pre.gather(1, col).flatten()
    threshold = pre.flatten().topk(pre.shape[0] * k, sorted=False).values.min().clamp(min=0)
    row, col = (pre >= threshold).nonzero(as_tuple=True)
    crow = torch.zeros(pre.shape[0] + 1, dtype=torch.int64, device=pre.device)
    crow[1:] = torch.bincount(row, minlength=pre.shape[0]).cumsum(0)
    return crow, col, pre[row, col]


def _dense(device: torch.device) -> bool:
    """Whether a device multiplies dense matrices so fast that sparse ones do not pay."""
    return device.type != "cpu"


def _spread(crow: Tensor, col: Tensor, values: Tensor, width: int) -> Tensor:
    """The codes as a matrix [batch, width], sparse where that pays."""
    if _dense(values.device):
        whole = values.new_zeros(len(crow) - 1, width)
        return whole.index_put_((_row_of(crow, col), col), values)
    return _compressed(crow, col, values, (len(crow) - 1, width))


def _gathered(crow: Tensor, col: Tensor, values: Tensor, width: int) -> Tensor:
    """The transpose of `_spread`, [width, batch]."""
    if _dense(values.device):
        return _spread(crow, col, values, width).t()
    order = torch.argsort(col, stable=True)
    starts = torch.zeros(width + 1, dtype=torch.int64, device=col.device)
    starts[1:] = torch.bincount(col, minlength=width).cumsum(0)
    return _compressed(starts, _row_of(crow, col)[order], values[order], (width, len(crow) - 1))


def _products_at(crow: Tensor, col: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """g @ W^T at the active places only."""
    if _dense(g.device):
        return (g @ W.t())[_row_of(crow, col), col]
    pattern = _compressed(crow, col, g.new_zeros(len(col)), (len(crow) - 1, len(W)))
    return torch.sparse.sampled_addmm(pattern, g, W.t(), beta=0.0).values()


def _row_of(crow: Tensor, col: Tensor) -> Tensor:
    rows = torch.arange(len(crow) - 1, device=col.device)
    return torch.repeat_interleave(rows, crow.diff(), output_size=len(col))


def _compressed(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse (CSR|invariant).*")
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)
