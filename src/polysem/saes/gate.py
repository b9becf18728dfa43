"""The gate's word on an SAE: it passes, it passes although another site fits better (a warning), or it does not, and what
else it could be is tried and named.

The other sites are those of the same width in this layer and its neighbours; they are compared at every load, on
`FEW_TOKENS` tokens, at the cost of one encoding each. On failure more is tried, one change at a time, then two: subtraction
of the decoder bias, centring, the input normalisations, the activation rules. Named is what passes and, of the sites,
fits best.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.errors import FidelityError, NumericsError
from polysem.positions import PLAIN
from polysem.saes.base import SAE
from polysem.saes.fidelity import MAX_L0_FRACTION, ActivationSource, Fidelity, fidelity, measure, passes
from polysem.saes.parts import fold_input_scale
from polysem.types import Site

log = logging.getLogger(__name__)

FEW_TOKENS = 128
"""sites of an SAE that passes, and pairs of changes, are many; they are tried on fewer tokens"""
CONFIRMED = 8
"""pairs of changes that pass on few tokens, tried again on all"""
BETTER = 0.95
"""another site fits better if its FVU is below this times the declared one's. On the zoo the next best tensor has 1.2
times the FVU of the site that an SAE was trained at"""
LEAST_GAIN = 0.005
"""... and at least this much below it: near zero nothing is gained"""
GUESSED_K = (8, 16, 32, 64, 128)
"""for a top-k SAE that was declared as ReLU without its k"""


@dataclass(frozen=True)
class Alternative:
    """One thing that may be wrong."""

    axis: str
    """changes of the same axis exclude each other"""
    label: str
    """as it is said in the message"""
    fields: tuple[tuple[str, object], ...] = ()
    """fields of SAE to replace"""
    site: Site | None = None
    scale_input: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What to tell the user."""

    message: str
    hint: str


@dataclass(frozen=True)
class _Tried:
    changes: tuple[Alternative, ...]
    seen: Fidelity


def check_fidelity(
    sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"], *, max_fvu: float
) -> Fidelity:
    """The fidelity, if it passes the gate. Warns where another site of the SAE's width fits better.

    Raises:
        FidelityError: if it does not; the message names the measured values and the alternative that would
            pass.
        NumericsError: if activations or reconstruction are not finite.
    """
    seen = fidelity(sae, model, token_rows)
    if passes(seen, max_fvu=max_fvu, d_sae=sae.d_sae):
        _compare_sites(sae, model, token_rows)
        return seen
    found = diagnose(sae, model, token_rows, max_fvu=max_fvu)
    raise FidelityError(
        f"SAE {sae.provenance.ref} does not reconstruct {sae.writes} of {model.spec.ref}: FVU {seen.fvu:.3g} "
        f"(expected at most {max_fvu:g}), L0 {seen.l0:.3g} (expected more than 0 and at most "
        f"{MAX_L0_FRACTION * sae.d_sae:g}) on {seen.n_tokens} tokens{_massive(seen)}. {found.message}",
        hint=found.hint,
    )


def _massive(seen: Fidelity) -> str:
    if seen.fvu_massive is None:
        return ""
    return f" ({seen.n_massive} massive ones apart: FVU {seen.fvu_massive:.3g})"


def _compare_sites(sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"]) -> None:
    sites = _sites(sae, model)
    rows = token_rows[: -(-FEW_TOKENS // (token_rows.shape[1] - 1))]
    with torch.no_grad():
        captured = _capture(sae, model, rows, sites)
        here = measure(sae, captured[sae.reads], written=captured[sae.writes])
        changes = [(Alternative("site", f"at {site}", site=site),) for site in sites]
        tried = list(_try(sae, captured, changes))
    best = min(tried, key=lambda t: t.seen.fvu, default=None)
    if best and best.seen.fvu < min(BETTER * here.fvu, here.fvu - LEAST_GAIN):
        site = best.changes[0].site
        log.warning(
            'SAE %s passes at %s (FVU %.3g), but %s fits better (FVU %.3g, both on %d tokens); next: site = "%s" in [[saes]],'
            ' or load_sae(..., site="%s")',
            *(sae.provenance.ref, sae.reads, here.fvu, site, best.seen.fvu, here.n_tokens, site, site),
        )


def _capture(
    sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"], sites: list[Site]
) -> dict[Site, Tensor]:
    """Activations [n d] at counted positions, where the SAE reads and writes and at the sites."""
    seen = model.capture(token_rows, [sae.reads, sae.writes, *sites])
    return {site: x[:, PLAIN.n_first :].flatten(0, 1) for site, x in seen.items()}


def diagnose(
    sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"], *, max_fvu: float
) -> Diagnosis:
    """The alternative with the smallest FVU among those that pass the gate on all tokens; if none does, the best that was
    seen."""
    sites = _sites(sae, model)
    with torch.no_grad():
        captured = _capture(sae, model, token_rows, sites)
        changes = [*(Alternative("site", f"at {site}", site=site) for site in sites), *_settings(sae)]
        tried = list(_try(sae, captured, [(change,) for change in changes]))
        good = [t for t in tried if passes(t.seen, max_fvu=max_fvu, d_sae=sae.d_sae)]
        if not good:
            fewer = {site: x[:FEW_TOKENS] for site, x in captured.items()}
            pairs = [(a, b) for a, b in combinations(changes, 2) if a.axis != b.axis]
            tried += _try(sae, fewer, pairs)
            some = [t for t in tried if passes(t.seen, max_fvu=max_fvu, d_sae=sae.d_sae)]
            best = sorted(some, key=lambda t: t.seen.fvu)[:CONFIRMED]
            again = _try(sae, captured, [t.changes for t in best])
            good = [t for t in again if passes(t.seen, max_fvu=max_fvu, d_sae=sae.d_sae)]
    return _say(sae, good, tried)


def _sites(sae: SAE, model: ActivationSource) -> list[Site]:
    """Sites of the SAE's width in its layer and the neighbouring layers, nearest first.

    Of two names of one tensor (`hook_mlp_out`, `mlp.hook_out`) the block-level one comes first, and so wins a
    tie.
    """
    here = sae.reads.layer if sae.reads.layer is not None else 0
    near = [
        site
        for site in model.sites()
        if site != sae.reads and abs((site.layer or 0) - here) <= 1 and model.site_width(site) == sae.d_in
    ]
    return sorted(near, key=lambda site: (abs((site.layer or 0) - here), "." in site.point, str(site)))


def _settings(sae: SAE) -> Iterator[Alternative]:
    bias, centre = sae.subtract_b_dec, sae.centre_input
    label = f"{'without' if bias else 'with'} subtraction of b_dec"
    yield Alternative("bias", label, (("subtract_b_dec", not bias),))
    yield Alternative(
        "centre", "without centring" if centre else "with centred input", (("centre_input", not centre),)
    )
    for rule in ("none", "layer_norm", "constant_norm_rescale"):
        if rule != sae.normalization:
            yield Alternative("scale", f"with normalization {rule}", (("normalization", rule),))
    label = "with inputs scaled to an average norm of sqrt(d_in)"
    yield Alternative("scale", label, (("normalization", "none"),), scale_input=True)
    if sae.activation == "relu":
        for k in (k for k in GUESSED_K if k < sae.d_sae):
            label = f"with activation topk, k = {k}"
            yield Alternative("activation", label, (("activation", "topk"), ("k", k)))
    elif sae.activation in ("topk", "jumprelu", "groupmax"):
        yield Alternative("activation", "with activation relu", (("activation", "relu"),))
        if sae.activation == "jumprelu" and (k := _own_k(sae)):
            label = f"with activation topk, the file's own k = {k}"
            yield Alternative("activation", label, (("activation", "topk"), ("k", k)))


def _own_k(sae: SAE) -> int | None:
    """The k that the files of a thresholded top-k dictionary declare."""
    k = sae.provenance.declared.get("k")
    return k if isinstance(k, int) and not isinstance(k, bool) and 1 <= k < sae.d_sae else None


def _try(sae: SAE, captured: dict[Site, Tensor], attempts: list[tuple[Alternative, ...]]) -> Iterator[_Tried]:
    for changes in attempts:
        fields = dict(pair for change in changes for pair in change.fields)
        site = next((change.site for change in changes if change.site), sae.reads)
        other = replace(sae.at(site), **fields)
        x = captured[site]
        if any(change.scale_input for change in changes):
            other = _with_input_scale(other, x)
        try:
            yield _Tried(changes, measure(other, x, written=captured[other.writes]))
        except NumericsError:  # an alternative that overflows is no explanation
            continue


def _with_input_scale(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> SAE:
    """The SAE as if it had been trained on inputs scaled to an average norm of sqrt(d_in)."""
    scale = float(sae.d_in**0.5 / x.norm(dim=-1).mean())
    folded = fold_input_scale({"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}, scale)
    return replace(sae, **folded)


def _say(sae: SAE, good: list[_Tried], tried: list[_Tried]) -> Diagnosis:
    if good:
        # Among alternatives that pass, one change explains more than two.
        best = min(good, key=lambda t: (len(t.changes), t.seen.fvu))
        said = " and ".join(change.label for change in best.changes)
        return Diagnosis(
            f"It would pass {said}: FVU {best.seen.fvu:.3g}, L0 {best.seen.l0:.3g}.", _fix(best.changes)
        )
    best = min(tried, key=lambda t: t.seen.fvu, default=None)
    closest = (
        f" The closest was {' and '.join(change.label for change in best.changes)}: FVU {best.seen.fvu:.3g}."
        if best
        else ""
    )
    return Diagnosis(
        f"{len(tried)} alternatives (site, normalisation, centring, activation, bias) were tried and none "
        f"passes.{closest}",
        f"check that the SAE was trained on this model ({sae.model_id or 'its files do not say on which'}); "
        "if its reconstruction is known to be this poor, raise max_fvu",
    )


def _fix(changes: tuple[Alternative, ...]) -> str:
    """How to apply what was found."""
    steps = []
    fields = {name: value for change in changes for name, value in change.fields if not change.scale_input}
    for change in changes:
        if change.site:
            steps.append(f'site = "{change.site}" in [[saes]], or load_sae(..., site="{change.site}")')
        if change.scale_input:
            steps.append(
                'in cfg.json "normalize_activations": "expected_average_only_in" and "norm_scaling_factor"'
            )
    if fields:
        arguments = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        steps.append(
            "correct the configuration beside the weights, or in Python dataclasses.replace(load_sae(ref), "
            f"{arguments})"
        )
    return "; and ".join(steps)
