"""Which features of an SAE are active where, exactly, at a fraction of the cost of its encoder in float32.

A bfloat16 product screens all features with a proved margin; whatever may be active is decided, and gets its
value, by one canonical float64 dot product of the two rows, rounded to float32. So an activation depends on
the input and the SAE alone: not on the screen, the batch, or threads.

For an input x (x' in bfloat16) and an encoder column w (w'), Cauchy-Schwarz gives |x.w - x'.w'| <= |x - x'|
|w| + |x'| |w - w'| <= |x| (2^-8 |w| + 1.01 |w - w'|), with |w - w'| measured. The margin and the bias are
more columns of the product, so that its sign, which no rounding of the result changes, says who may be
active.

relu, jumprelu, gated and topk are screened on a CPU. groupmax and other devices are encoded densely, as
`SAE.encode` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import ConfigError, NumericsError
from polysem.geometry.mine import flagged_any_width
from polysem.geometry.product import (
    EPS,
    Product,
    by_speed,
    float32_product,
    full_precision,
    plain_product,
    sum_error,
)
from polysem.geometry.rows import canonical_dots
from polysem.saes.base import SAE, decoder_norms, encoder_input

Screening = Literal["auto", "bf16", "fp32"]

DENSE = 0.03
"""share of features in doubt above which a dense float64 product is faster than one dot product each"""
_PLACES = 512
"""inputs screened together"""
_FEATURES = 4096
"""features screened together: their products stay in the third-level cache"""
_GROUP = 8
"""features of which the largest stands for all when the k-th largest is bounded from below"""
_BF16 = 2.0**-8
"""bound on the relative rounding to bfloat16, truncation included"""
_WORTH_BF16 = 2048
"""features below which float32 is as fast a screen"""
_LEAST = 1e-30
"""least margin and positive bias: products far below it may vanish in float32"""
_EXTRA = 4
"""columns added to the product: three of the bias, one of the margin"""
_FAR_BELOW_INFINITY = 1e37
_NOTHING = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
"""places, features and values of no activation"""


@dataclass(frozen=True)
class Active:
    """The activations above zero, sorted by (place, feature)."""

    n_places: int
    d_sae: int
    place: Int[np.ndarray, " n"]
    feature: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    n_seen: int | None = None
    """places that count; None: all"""

    @classmethod
    def of_dense(cls, acts: Float[Tensor, "places d_sae"]) -> "Active":
        """Those of a dense array."""
        flat = (acts > 0).flatten().nonzero()[:, 0]
        value = acts.flatten()[flat].float().cpu().numpy()
        place, feature = np.divmod(flat.cpu().numpy(), acts.shape[1])
        return cls(acts.shape[0], acts.shape[1], place, feature, value)

    def only(self, kept: Bool[np.ndarray, " places"]) -> "Active":
        """Those at some places; the others count as never seen, and their places stay."""
        if kept.all():
            return self
        at = kept[self.place]
        return replace(
            self, n_seen=int(kept.sum()), place=self.place[at], feature=self.feature[at], value=self.value[at]
        )

    def windows(
        self, start: Int[np.ndarray, " m"], feature: Int[np.ndarray, " m"], width: int
    ) -> Float[np.ndarray, "m width"]:
        """Activations of features at `width` places from `start` on, 0 where there is none."""
        keys = self.feature * self.n_places + self.place
        order = np.argsort(keys)
        first = feature * self.n_places + start
        begin, end = np.searchsorted(keys[order], np.stack([first, first + width]))
        sizes = end - begin
        row = np.repeat(np.arange(len(start)), sizes)
        held = order[np.arange(len(row)) + np.repeat(begin - np.cumsum(sizes) + sizes, sizes)]
        found = np.zeros((len(start), width), np.float32)
        found[row, self.place[held] - start[row]] = self.value[held]
        return found


class ActiveEncoder:
    """Encodes inputs of one SAE."""

    def __init__(self, sae: SAE, *, screen: Screening = "auto"):
        """Copies the weights once, in the layouts that the screen and the dot products want.

        Args:
            sae: the SAE, on the device where inputs will be.
            screen: arithmetic of the first pass; "auto" takes the faster one. Activations do not depend on
                it.
        """
        self.sae = sae
        self._rule = None
        parts = (sae.W_enc, sae.b_enc, sae.b_dec, *(sae.gate or ()))
        self._finite = all(bool(torch.isfinite(part).all()) for part in parts)
        if sae.W_enc.device.type == "cpu" and sae.activation != "groupmax" and self._finite:
            self._columns = sae.W_enc.detach().float().t().contiguous().numpy()
            self._rule = _Rule.of(sae)
            dtype = torch.bfloat16 if _screens_in_bf16(screen, sae.d_sae) else torch.float32
            self._screen = _Screen.of(self._columns, self._rule, dtype)

    def __call__(self, x: Float[Tensor, "places d_in"]) -> Active:
        """The activations of inputs.

        Raises:
            NumericsError: if inputs, weights or activations are not finite.
        """
        if not len(x):
            return Active(0, self.sae.d_sae, *_NOTHING)
        if self._rule is None:
            acts = self.sae.encode(x)
            # The largest says it for all: NaN goes through amax, and encoders give nothing below zero.
            _require_finite(self._finite and (not acts.numel() or bool(torch.isfinite(acts.amax()))))
            return Active.of_dense(acts)
        inputs = encoder_input(self.sae, x).detach().float().contiguous()
        _require_finite(bool(torch.isfinite(inputs).all()))
        blocks = range(0, len(inputs), _PLACES)
        parts = [self._block(self._rule, inputs[k : k + _PLACES], k) for k in blocks]
        place, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        _require_finite(bool(np.isfinite(value).all()))
        return Active(len(inputs), self.sae.d_sae, place, feature, value)

    def _block(self, rule: "_Rule", inputs: Tensor, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place, feature, value) of a few inputs, the places counted from `first`."""
        rows, few = inputs.numpy(), self._few(inputs, rule.k)
        if few is None:
            value = rule.values(_dense_dots(rows, self._columns), slice(None))
            able = value > 0
            if rule.k is not None and rule.k < self.sae.d_sae:
                able &= value >= np.partition(value, -rule.k, axis=1)[:, -rule.k, None]
            place, feature = able.nonzero()
            value = value[able]
        else:
            place, feature = few
            value = rule.values(canonical_dots(self._columns, rows, feature, place), feature)
        order = np.lexsort((feature, place)) if rule.k is None else _k_largest(rule.k, place, feature, value)
        with np.errstate(over="ignore"):  # refused by the caller
            value = value.astype(np.float32)
        order = order[value[order] > 0]
        return first + place[order], feature[order], value[order]

    def _few(
        self, inputs: Float[Tensor, "places d_in"], k: int | None
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None:
        """(place, feature) of what has to be decided; None: too many, so all of them. Inputs whose norm is far above their
        activations, as a model's massive ones are, leave nothing to a bfloat16 screen: float32 takes its place."""
        assert self._rule is not None
        found = list(self._screen.candidates(inputs, k=k))
        if sum(len(place) for place, _ in found) <= DENSE * len(inputs) * self.sae.d_sae:
            place, feature = (np.concatenate(column) for column in zip(*found, strict=True))
            return place, feature
        if self._screen.columns.dtype == torch.float32:
            return None
        self._screen = _Screen.of(self._columns, self._rule, torch.float32)
        return self._few(inputs, k)


@dataclass(frozen=True)
class _Rule:
    """Activation of a feature from x.w: scale * x.w + bias if x.w + offset > 0 and that is above 0."""

    offset: Float[np.ndarray, " d_sae"]
    scale: Float[np.ndarray, " d_sae"]
    bias: Float[np.ndarray, " d_sae"]
    k: int | None
    """of topk, which compares what the others cut at 0"""

    @classmethod
    def of(cls, sae: SAE) -> "_Rule":
        def wide(tensor: Tensor) -> np.ndarray:
            return tensor.detach().double().numpy()

        if sae.activation == "gated":
            if sae.gate is None:
                raise ConfigError("a gated SAE needs `gate` (r_mag, b_mag, b_gate), got None")
            r_mag, b_mag, b_gate = (wide(part) for part in sae.gate)
            return cls(b_gate, np.exp(r_mag), b_mag, None)
        bias, scale = wide(sae.b_enc), np.ones(sae.d_sae)
        if sae.rescale_by_decoder_norm:
            scale = wide(decoder_norms(sae))
        offset = bias
        if sae.activation == "jumprelu":
            if sae.threshold is None:
                raise ConfigError("a jumprelu SAE needs `threshold` [d_sae], got None")
            offset = bias - np.maximum(wide(sae.threshold), 0) / scale
        if sae.activation == "topk" and sae.k is None:
            raise ConfigError("a topk SAE needs `k`, got None")
        return cls(offset, scale, bias * scale, sae.k if sae.activation == "topk" else None)

    def values(
        self, dots: Float[np.ndarray, "*n"], feature: Int[np.ndarray, "*n"] | slice
    ) -> Float[np.ndarray, "*n"]:
        """Activations of dot products; of topk what it compares, of the others 0 where not active."""
        value = self.scale[feature] * dots + self.bias[feature]
        if self.k is None:
            value[~(dots + self.offset[feature] > 0)] = 0
        return value


@dataclass(frozen=True)
class _Screen:
    """Encoder columns with those of bias and margin, times scale if topk compares: the sign of a product says
    who may be active."""

    columns: Tensor
    """[d_sae, d_in + extra], padded with zeros"""
    reach: float
    loose: float
    """a product is at most reach x |input| + loose above what it stands for"""
    largest: float
    """no product is above 4 x largest x (1 + |input|)"""
    product: Product

    @classmethod
    def of(cls, columns: Float[np.ndarray, "d_sae d_in"], rule: _Rule, dtype: torch.dtype) -> "_Screen":
        d_sae, d_in = columns.shape
        width = -(-(d_in + _EXTRA) // 32) * 32
        made = torch.zeros(d_sae, width, dtype=dtype)
        margin = torch.zeros(d_sae, dtype=torch.float64)
        scale = torch.from_numpy(rule.scale if rule.k is not None else np.ones(d_sae))
        rounding, largest = _BF16 if dtype == torch.bfloat16 else EPS, 0.0
        for start in range(0, d_sae, _FEATURES):
            part = slice(start, start + _FEATURES)
            exact = torch.from_numpy(columns[part]).double() * scale[part, None]
            made[part, :d_in] = exact.to(dtype)
            away = (exact - made[part, :d_in].double()).norm(dim=1)
            norm = exact.norm(dim=1)
            largest = max(largest, float((norm + away).max()))
            # rounding of the input, of the column, and of the sum
            margin[part] = norm * rounding + (1 + rounding) * (away + sum_error(width) * (norm + away))
        # 1.01: the rounding of the margin's own column; a column of zeros needs no margin
        margin = torch.where(margin > 0, 1.01 * margin + _LEAST, margin)
        bias = torch.from_numpy(rule.offset) * scale
        bias = torch.where(bias > 0, bias.clamp(min=_LEAST), bias)
        loose = 4 * sum_error(width) * float(bias.abs().max())
        bias = bias + bias.abs() * 2 * sum_error(width)
        bias_most = bias.abs().max()
        for column in range(d_in, d_in + _EXTRA - 1):
            made[:, column] = bias.to(dtype)
            bias = bias - made[:, column].double()
        # what three pieces leave of a bias is 2^-24 of it, which the second sum_error above covers
        made[:, d_in + _EXTRA - 1] = (margin * (1 + 2 * rounding)).to(dtype)
        way = plain_product if dtype == torch.bfloat16 else float32_product("cpu")
        largest += float(bias_most + margin.max())
        return cls(made, 2.04 * float(margin.max()), loose, largest, way)

    def candidates(
        self, inputs: Float[Tensor, "places d_in"], *, k: int | None
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
        """(place, feature) of all that may be active, or among the k largest and active."""
        places, d_in = inputs.shape
        dtype = self.columns.dtype
        norm = inputs.double().norm(dim=1)
        left = torch.zeros(places, self.columns.shape[1], dtype=dtype)
        left[:, :d_in] = inputs.to(dtype)
        left[:, d_in : d_in + _EXTRA - 1] = 1
        left[:, d_in + _EXTRA - 1] = (norm * (1 + 2 * _BF16)).to(dtype)
        yield _NOTHING[:2]
        at_once = _FEATURES if k is None else len(self.columns)
        out = torch.empty(places * min(at_once, len(self.columns)), dtype=dtype)
        for start in range(0, len(self.columns), at_once):
            right = self.columns[start : start + at_once]
            with full_precision():
                product = self.product(left, right, out=out[: places * len(right)].view(places, len(right)))
            floor = torch.zeros(1, 1, dtype=dtype) if k is None else self._floor(product, norm, k)[:, None]
            if dtype == torch.bfloat16 and 4 * self.largest * (1 + float(norm.max())) < _FAR_BELOW_INFINITY:
                # numbers above 0 are ordered as the integers of their bits, which are compared several times as fast
                flags = product.view(torch.int16) >= floor.view(torch.int16).clamp(min=1)
            else:  # "not below" instead of "above", so that what overflowed to NaN is decided, too
                flags = (product < floor if k else product <= floor).logical_not_()
            for place, feature in flagged_any_width(flags):
                yield place, feature + start

    def _floor(self, upper: Tensor, norm: Tensor, k: int) -> Tensor:
        """A lower bound of each input's k-th largest, from upper bounds of all; 0 where that is below 0."""
        width = upper.shape[1]
        groups = upper
        if width // _GROUP >= 2 * k:
            whole = width - width % _GROUP
            groups = upper[:, :whole].reshape(len(upper), -1, _GROUP).amax(dim=2)
        kth = groups.topk(min(k, groups.shape[1]), dim=1).values[:, -1].double()
        rounding = 2 * _BF16 if upper.dtype == torch.bfloat16 else 4 * EPS
        lowest = kth - kth.abs() * rounding - self.reach * norm - self.loose
        # down to the type of the products, once more by a rounding of that type
        return (lowest - lowest.abs() * rounding).clamp(min=0).to(upper.dtype)


def _screens_in_bf16(screen: Screening, d_sae: int) -> bool:
    """Whether to screen in bfloat16: only where its products sum as the margin assumes."""
    able = by_speed("cpu")
    if screen == "auto":
        return d_sae >= _WORTH_BF16 and "bf16" in able and able.index("bf16") < able.index("fp32")
    return screen == "bf16" and "bf16" in able


def _dense_dots(
    rows: Float[np.ndarray, "places d_in"], columns: Float[np.ndarray, "d_sae d_in"]
) -> Float[np.ndarray, "places d_sae"]:
    """All dot products in float64."""
    wide = rows.astype(np.float64)
    dots = np.empty((len(rows), len(columns)))
    for start in range(0, len(columns), _FEATURES):
        part = slice(start, start + _FEATURES)
        dots[:, part] = wide @ columns[part].astype(np.float64).T
    return dots


def _k_largest(k: int, place: np.ndarray, feature: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Indices of each place's k largest, the smaller feature first among equals; sorted by place and
    feature."""
    order = np.lexsort((feature, -value, place))
    begin = np.searchsorted(place[order], place[order], side="left")
    kept = order[np.arange(len(order)) - begin < k]
    return kept[np.lexsort((feature[kept], place[kept]))]


def _require_finite(finite: bool) -> None:
    if not finite:
        raise NumericsError(
            "inputs, weights or activations of an SAE are not finite",
            hint="check the activations that are given; if they are finite, fetch the files of the SAE again",
        )
