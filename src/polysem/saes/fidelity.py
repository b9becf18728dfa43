"""The fidelity gate: does an SAE reconstruct the activations that it is about to be used on?

Wrong site, wrong normalisation, wrong activation rule: all of them load without a murmur and give plausible
numbers. FVU (fraction of variance unexplained) and L0 on a few hundred tokens tell. If they do not pass, the
alternatives are tried and the one that would pass is named.

    FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2        over ordinary tokens
    L0  = mean number of active features per ordinary token

The first position of a row is left out, and massive tokens stand apart (`polysem.positions`): at a hundred times the
usual norm, one of them weighs as much as ten thousand others, and its FVU says nothing about theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import ConfigError, NumericsError
from polysem.positions import PLAIN, PositionPolicy
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
    """ordinary tokens, of which `fvu` and `l0` are"""
    fvu_massive: float | None = None
    """of massive tokens, as a share of their squared distance from the mean ordinary token; None without any"""
    n_massive: int = 0

    def facts(self) -> dict[str, float]:
        """As it goes into manifests: massive tokens only where there are some."""
        found = {"fvu": self.fvu, "l0": self.l0, "n_tokens": float(self.n_tokens)}
        if self.fvu_massive is not None:
            found |= {"fvu_massive": self.fvu_massive, "n_massive": float(self.n_massive)}
        return found


def fidelity(sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"]) -> Fidelity:
    """FVU and L0 of what an SAE writes from what it reads, the first position of every row excluded.

    Raises:
        NumericsError: if activations or reconstruction are not finite.
    """
    with torch.no_grad():
        seen = model.capture(token_rows, [sae.reads, sae.writes])
        x, written = (seen[site][:, PLAIN.n_first :] for site in (sae.reads, sae.writes))
        return measure(sae, x, written=written)


def measure(
    sae: SAE, x: Float[Tensor, "*batch d_in"], *, written: Float[Tensor, "*batch d_out"] | None = None
) -> Fidelity:
    """FVU and L0 on given activations, massive tokens apart. If the SAE centres its input, so does the yardstick.

    Args:
        x: activations where it reads.
        written: activations where it writes, of the same tokens; None: an autoencoder, which writes x.

    Raises:
        NumericsError: if activations or reconstruction are not finite.
    """
    flat = x.reshape(-1, x.shape[-1]).to(sae.W_dec)
    wanted = flat if written is None else written.reshape(-1, written.shape[-1]).to(sae.W_dec)
    if not (torch.isfinite(flat).all() and torch.isfinite(wanted).all()):
        raise NumericsError(
            f"activations at {sae.reads} are not finite",
            hint='load the model with dtype = "float32"; float16 overflows in some models',
        )
    acts = sae.encode(flat)
    error = (wanted - sae.decode(acts, like=flat)).double()
    target = (wanted - wanted.mean(dim=-1, keepdim=True) if sae.centre_input else wanted).double()
    usual = _ordinary(flat) & _ordinary(wanted)
    distance = target - target[usual].mean(dim=0)
    fvu, fvu_massive = (
        float(error[some].pow(2).sum() / distance[some].pow(2).sum()) for some in (usual, ~usual)
    )
    if fvu != fvu or fvu == float("inf"):
        raise NumericsError(
            f"FVU of {sae.provenance.ref} is {fvu}: the reconstruction is not finite, or the activations do "
            "not vary"
        )
    return Fidelity(
        fvu=fvu,
        l0=float((acts[usual] > 0).sum(dim=-1).double().mean()),
        n_tokens=int(usual.sum()),
        fvu_massive=None if usual.all() else fvu_massive,
        n_massive=int((~usual).sum()),
    )


def _ordinary(x: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    norms = x.double().norm(dim=1).cpu().numpy()
    return torch.from_numpy(PLAIN.ordinary(norms)).to(x.device)


def passes(seen: Fidelity, *, max_fvu: float, d_sae: int) -> bool:
    """Whether FVU and L0 are within the gate: FVU at most `max_fvu`, some features active, at most half of
    them."""
    return seen.fvu <= max_fvu and 0 < seen.l0 <= MAX_L0_FRACTION * d_sae


def sample_rows(
    model: ActivationSource,
    text: Sequence[str] | None = None,
    *,
    positions: PositionPolicy,
    context: int | None = None,
    n_tokens: int = N_TOKENS,
) -> Int[Tensor, "n pos"]:
    """Rows of token ids for the gate: the texts one after another, cut to equal length, BOS in front of each
    row if asked for.

    Args:
        model: gives the tokenizer.
        text: sample strings; default a built-in sample of English prose.
        positions: says what stands in front of rows.
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
    bos = [*positions.front]
    length = min(context or MAX_CONTEXT, MAX_CONTEXT, model.spec.n_ctx, len(ids) + len(bos))
    stride = length - len(bos)
    if stride < 1 or length < 2:
        raise ConfigError(
            f"the sample text has {len(ids)} tokens; the fidelity gate needs rows of at least 2",
            hint="give more text",
        )
    rows = [bos + ids[start : start + stride] for start in range(0, len(ids) - stride + 1, stride)]
    return torch.tensor(rows[: max(1, n_tokens // length)], dtype=torch.long)


def built_in_sample() -> list[str]:
    """Six short paragraphs of English prose, written for this purpose."""
    return files("polysem.saes").joinpath("sample.txt").read_text(encoding="utf-8").splitlines()
