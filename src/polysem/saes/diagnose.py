"""What is probably wrong with an SAE that failed the fidelity gate: try what else it could be, and name what
would pass.

Tried one at a time, then two at a time: other sites of the same width in this layer and its neighbours,
subtraction of the decoder
bias, centring, the input normalisations, the activation rules. It costs one capture of the model and some
dozens of encodings of a
few hundred tokens, and it is paid on failure only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from jaxtyping import Int
from torch import Tensor

from polysem.errors import NumericsError
from polysem.saes.base import SAE
from polysem.saes.fidelity import ActivationSource, Fidelity, measure, passes, with_input_scale
from polysem.types import Site

MAX_PAIR_TOKENS = 128
"""pairs of changes are many; they are tried on fewer tokens"""
GUESSED_K = (8, 16, 32, 64, 128)
"""for a top-k SAE that was declared as ReLU without its k"""


@dataclass(frozen=True)
class Change:
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
    changes: tuple[Change, ...]
    seen: Fidelity


def diagnose(
    sae: SAE, model: ActivationSource, token_rows: Int[Tensor, "n pos"], *, max_fvu: float
) -> Diagnosis:
    """The alternative with the smallest FVU among those that pass the gate; if none does, the best that was
    seen."""
    sites = _sites(sae, model)
    with torch.no_grad():
        captured = {
            site: x[:, 1:].flatten(0, 1) for site, x in model.capture(token_rows, [sae.site, *sites]).items()
        }
        changes = [*(Change("site", f"at {site}", site=site) for site in sites), *_settings(sae)]
        tried = list(_try(sae, captured, [(change,) for change in changes]))
        good = [t for t in tried if passes(t.seen, max_fvu=max_fvu, d_sae=sae.d_sae)]
        if not good:
            fewer = {site: x[:MAX_PAIR_TOKENS] for site, x in captured.items()}
            pairs = [(a, b) for a, b in combinations(changes, 2) if a.axis != b.axis]
            tried += _try(sae, fewer, pairs)
            good = [t for t in tried if passes(t.seen, max_fvu=max_fvu, d_sae=sae.d_sae)]
    return _say(sae, good, tried)


def _sites(sae: SAE, model: ActivationSource) -> list[Site]:
    """Sites of the SAE's width in its layer and the neighbouring layers, nearest first.

    Of two names of one tensor (`hook_mlp_out`, `mlp.hook_out`) the block-level one comes first, and so wins a
    tie.
    """
    here = sae.site.layer if sae.site.layer is not None else 0
    near = [
        site
        for site in model.sites()
        if site != sae.site and abs((site.layer or 0) - here) <= 1 and model.site_width(site) == sae.d_in
    ]
    return sorted(near, key=lambda site: (abs((site.layer or 0) - here), "." in site.point, str(site)))


def _settings(sae: SAE) -> Iterator[Change]:
    yield Change(
        "bias",
        f"{'without' if sae.subtract_b_dec else 'with'} subtraction of b_dec",
        (("subtract_b_dec", not sae.subtract_b_dec),),
    )
    if not sae.centre_input:
        yield Change("centre", "with centred input", (("centre_input", True),))
    else:
        yield Change("centre", "without centring", (("centre_input", False),))
    for normalization in ("none", "layer_norm", "constant_norm_rescale"):
        if normalization != sae.normalization:
            yield Change("scale", f"with normalization {normalization}", (("normalization", normalization),))
    yield Change(
        "scale",
        "with inputs scaled to an average norm of sqrt(d_in)",
        (("normalization", "none"),),
        scale_input=True,
    )
    if sae.activation == "relu":
        for k in (k for k in GUESSED_K if k < sae.d_sae):
            yield Change("activation", f"with activation topk, k = {k}", (("activation", "topk"), ("k", k)))
    elif sae.activation in ("topk", "jumprelu", "groupmax"):
        yield Change("activation", "with activation relu", (("activation", "relu"),))


def _try(sae: SAE, captured: dict[Site, Tensor], attempts: list[tuple[Change, ...]]) -> Iterator[_Tried]:
    for changes in attempts:
        fields = dict(pair for change in changes for pair in change.fields)
        site = next((change.site for change in changes if change.site), sae.site)
        other = replace(sae, site=site, **fields)
        x = captured[site]
        if any(change.scale_input for change in changes):
            other = with_input_scale(other, x)
        try:
            yield _Tried(changes, measure(other, x))
        except NumericsError:  # an alternative that overflows is no explanation
            continue


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


def _fix(changes: tuple[Change, ...]) -> str:
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
