"""The fidelity gate: does an SAE reconstruct the activations that it is about to be used on?

Wrong site, wrong normalisation, wrong activation rule: all of them load without a murmur and give plausible
numbers. FVU (fraction of
variance unexplained) and L0 on a few hundred tokens tell. If they do not pass, the alternatives are tried and
the one that would
pass is named.

    FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2        over tokens, the first position of each row
    excluded
    L0  = mean number of active features per token
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.errors import ConfigError, FidelityError, NumericsError
from polysem.saes.base import SAE
from polysem.types import Site

N_TOKENS = 512
"""enough: FVU of one SAE varies by about a hundredth between samples of this size"""
MAX_CONTEXT = 64
MAX_L0_FRACTION = 0.5
"""an SAE with half of its features active is not sparse: its biases or thresholds are not those it was
trained with"""


@runtime_checkable
class ActivationSource(Protocol):
    """What is asked of a model here; `polysem.models.base.WhiteBoxModel` has all of it."""

    spec: Any

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]: ...

    @property
    def bos_id(self) -> int | None: ...

    def sites(self) -> list[Site]: ...

    def site_width(self, site: Site) -> int: ...

    def capture(self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site]) -> dict[Site, Tensor]: ...


@dataclass(frozen=True)
class Fidelity:
    """How well an SAE reconstructs."""

    fvu: float
    """fraction of variance unexplained: 0 is perfect, 1 is no better than the mean activation"""
    l0: float
    """mean number of active features per token"""
    n_tokens: int


def fidelity(sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"]) -> Fidelity:
    """FVU and L0 of an SAE on the model's activations at its site, the first position of every row excluded.

    Raises:
        NumericsError: if activations or reconstruction are not finite.
    """
    with torch.no_grad():
        return measure(sae, model.capture(token_rows, [sae.site])[sae.site][:, 1:])


def measure(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> Fidelity:
    """FVU and L0 on given activations. If the SAE centres its input, so does the yardstick.

    Raises:
        NumericsError: if activations or reconstruction are not finite.
    """
    flat = x.reshape(-1, x.shape[-1]).to(sae.W_dec)
    if not torch.isfinite(flat).all():
        raise NumericsError(
            f"activations at {sae.site} are not finite",
            hint='load the model with dtype = "float32"; float16 overflows in some models',
        )
    acts = sae.encode(flat)
    error = (flat - sae.decode(acts, like=flat)).double()
    target = (flat - flat.mean(dim=-1, keepdim=True) if sae.centre_input else flat).double()
    variance = (target - target.mean(dim=0)).pow(2).sum()
    fvu = float(error.pow(2).sum() / variance)
    if fvu != fvu or fvu == float("inf"):
        raise NumericsError(
            f"FVU of {sae.provenance.ref} is {fvu}: the reconstruction is not finite, or the activations do "
            "not vary"
        )
    return Fidelity(fvu=fvu, l0=float((acts > 0).sum(dim=-1).double().mean()), n_tokens=flat.shape[0])


def passes(seen: Fidelity, *, max_fvu: float, d_sae: int) -> bool:
    """Whether FVU and L0 are within the gate: FVU at most `max_fvu`, some features active, at most half of
    them."""
    return seen.fvu <= max_fvu and 0 < seen.l0 <= MAX_L0_FRACTION * d_sae


def check_fidelity(
    sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"], *, max_fvu: float
) -> Fidelity:
    """The fidelity, if it passes the gate.

    Raises:
        FidelityError: if it does not; the message names the measured values and the alternative that would
        pass.
        NumericsError: if activations or reconstruction are not finite.
    """
    seen = fidelity(sae, model, token_rows)
    if passes(seen, max_fvu=max_fvu, d_sae=sae.d_sae):
        return seen
    from polysem.saes.diagnose import diagnose

    found = diagnose(sae, model, token_rows, max_fvu=max_fvu)
    raise FidelityError(
        f"SAE {sae.provenance.ref} does not reconstruct {sae.site} of {model.spec.ref}: FVU {seen.fvu:.3g} "
        f"(expected at most {max_fvu:g}), L0 {seen.l0:.3g} (expected more than 0 and at most "
        f"{MAX_L0_FRACTION * sae.d_sae:g}) on {seen.n_tokens} tokens. {found.message}",
        hint=found.hint,
    )


def sample_rows(
    model: ActivationSource,
    text: Sequence[str] | None = None,
    *,
    prepend_bos: bool,
    context: int | None = None,
    n_tokens: int = N_TOKENS,
) -> Int[Tensor, "n pos"]:
    """Rows of token ids for the gate: the texts one after another, cut to equal length, BOS in front of each
    row if asked for.

    Args:
        model: gives the tokenizer.
        text: sample strings; default a built-in sample of English prose.
        prepend_bos: whether rows begin with BOS (only if the tokenizer has one).
        context: the SAE's training context; rows are not longer than it, nor than the model's or 64 tokens.
        n_tokens: about how many tokens in all.

    Raises:
        ConfigError: if the text is too short for one row of two tokens.
    """
    ids = [
        i
        for piece in (built_in_sample() if text is None else text)
        for i in model.tokenize(piece, prepend_bos=False)
    ]
    bos = [model.bos_id] if prepend_bos and model.bos_id is not None else []
    length = min(context or MAX_CONTEXT, MAX_CONTEXT, model.spec.n_ctx, len(ids) + len(bos))
    stride = length - len(bos)
    if stride < 1 or length < 2:
        raise ConfigError(
            f"the sample text has {len(ids)} tokens; the fidelity gate needs rows of at least 2",
            hint="give more text",
        )
    rows = [bos + ids[start : start + stride] for start in range(0, len(ids) - stride + 1, stride)]
    return torch.tensor(rows[: max(1, n_tokens // length)], dtype=torch.long)


def with_input_scale(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> SAE:
    """The SAE as if it had been trained on inputs scaled to an average norm of sqrt(d_in)."""
    from polysem.saes.parts import fold_input_scale

    scale = float(sae.d_in**0.5 / x.norm(dim=-1).mean())
    folded = fold_input_scale({"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}, scale)
    return replace(sae, **folded)


def built_in_sample() -> list[str]:
    """Six short paragraphs of English prose, written for this purpose."""
    return files("polysem.saes").joinpath("sample.txt").read_text(encoding="utf-8").splitlines()
