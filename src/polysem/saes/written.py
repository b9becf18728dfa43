"""The fidelity gate of transcoders: does what they write stand where the model writes?

FVU at every written site, of the sum over layers, from what stands where they read. If a site does not pass, other points of
the block are tried as the one that is read (before the norm, behind it), as the one that is written, and the skip the other
way round; what passes is named.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.errors import FidelityError
from polysem.positions import PLAIN
from polysem.saes.fidelity import ActivationSource
from polysem.saes.transcoder import Transcoder, TranscoderSet, Writer
from polysem.types import Site

log = logging.getLogger(__name__)
READS = (
    "mlp.hook_in",
    "hook_resid_mid",
    "hook_resid_pre",
    "attn.hook_in",
    "hook_resid_post",
    "hook_mlp_out",
)
WRITES = ("hook_mlp_out", "mlp.hook_out", "hook_resid_post", "hook_attn_out")
BETTER, LEAST_GAIN = 0.95, 0.005
"""another point fits better if the mean FVU is below this times, and this much below, the declared one's"""


@dataclass(frozen=True)
class WrittenFidelity:
    """How well one site is written."""

    fvu: float
    """fraction of variance unexplained, over ordinary tokens"""
    n_tokens: int


def check_written(
    found: TranscoderSet, model: ActivationSource, token_rows: Int[Tensor, "n pos"], *, max_fvu: float
) -> dict[Site, WrittenFidelity]:
    """FVU by written site, if all pass. Warns where another point fits better.

    Raises:
        FidelityError: if one does not; names the values, and what would pass.
    """
    seen = _captured(found, model, token_rows)
    here = measure_written(found, seen)
    tried = [
        (label, one, measure_written(other, seen)) for label, one, other in _alternatives(found, model, seen)
    ]
    best = min(tried, key=lambda t: _mean(t[2]), default=None)
    bad = {site: one for site, one in here.items() if not one.fvu <= max_fvu}
    if not bad:
        if best and _mean(best[2]) < min(BETTER * _mean(here), _mean(here) - LEAST_GAIN):
            log.warning(
                "transcoders %s pass (mean FVU %.3g), but fit better %s (%.3g); next: %s",
                *(found.provenance.ref, _mean(here), best[0], _mean(best[2]), best[1]),
            )
        return here
    shown = "; ".join(f"{site} {one.fvu:.3g}" for site, one in bad.items())
    passing = [t for t in tried if all(one.fvu <= max_fvu for one in t[2].values())]
    if passing:
        label, step, fvu = min(passing, key=lambda t: _mean(t[2]))
        said, hint = f"They would pass {label}: mean FVU {_mean(fvu):.3g}.", step
    else:
        closest = f" The closest was {best[0]}: mean FVU {_mean(best[2]):.3g}." if best else ""
        said = f"{len(tried)} alternatives (read point, written point, side of the skip) were tried and none passes.{closest}"
        hint = f"check that they were trained on this model ({found.model_id or 'their files do not say'}), or raise max_fvu"
    raise FidelityError(
        f"transcoders {found.provenance.ref} do not write what {model.spec.ref} writes: FVU {shown}, expected at most "
        f"{max_fvu:g} at each. {said}",
        hint=hint,
    )


def measure_written(
    found: TranscoderSet, seen: Mapping[Site, Float[Tensor, "n _d"]]
) -> dict[Site, WrittenFidelity]:
    """FVU by written site from activations [n d]; massive tokens at the site or where it is read are left out."""
    with torch.no_grad():
        made = found.written({one.reads: seen[one.reads].float() for one in found.layers})
    result = {}
    for site, out in made.items():
        wanted = seen[site].double()
        usual = _ordinary(wanted)
        for one in found.layers:
            if site in one.writes:
                usual &= _ordinary(seen[one.reads].double())
        error = (wanted - out.double())[usual].pow(2).sum()
        spread = (wanted - wanted[usual].mean(0))[usual].pow(2).sum()
        result[site] = WrittenFidelity(float(error / spread), int(usual.sum()))
    return result


def _captured(
    found: TranscoderSet, model: ActivationSource, token_rows: Int[Tensor, "n pos"]
) -> dict[Site, Tensor]:
    """Activations [n d] at counted positions, at all points of the layers that an alternative may want."""
    known = set(model.sites())
    own = {one.reads for one in found.layers} | set(found.sites)
    for site in own:
        model.site_width(site)  # SiteError, if the model does not have it
    layers = {site.layer for site in own}
    near = {Site(layer, point) for layer in layers for point in (*READS, *WRITES)} & known
    seen = model.capture(token_rows, sorted(own | near))
    return {site: x[:, PLAIN.n_first :].flatten(0, 1).cpu() for site, x in seen.items()}


def _alternatives(
    found: TranscoderSet, model: ActivationSource, seen: Mapping[Site, Tensor]
) -> Iterator[tuple[str, str, TranscoderSet]]:
    """What else it could be: (words, next step, the set)."""
    skips = any(w.W_skip is not None for one in found.layers for w in one.writers)
    square = all(
        w.W_skip is None or w.W_skip.shape[0] == w.W_skip.shape[1]
        for one in found.layers
        for w in one.writers
    )
    if skips and square:
        turned = replace(found, layers=tuple(_turned(one) for one in found.layers))
        yield (
            "with the skip transposed",
            "transpose W_skip in the file: the dialect stores it the other way",
            turned,
        )
    for point in READS:
        moved = tuple(one.reading(point) for one in found.layers)
        if moved != found.layers and all(
            m.reads in seen and model.site_width(m.reads) == m.encoder.d_in for m in moved
        ):
            if point == found.layers[0].reads.point:
                continue
            step = f'load_transcoders(..., reads="{point}")'
            yield f"reading {point}", step, replace(found, layers=moved)
    for point in WRITES:
        if point == found.sites[0].point or any(Site(site.layer, point) not in seen for site in found.sites):
            continue
        moved = tuple(
            replace(one, writers=tuple(replace(w, site=Site(w.site.layer, point)) for w in one.writers))
            for one in found.layers
        )
        yield (
            f"writing {point}",
            f"correct the written site in the files: {point}",
            TranscoderSet(moved, found.whole, found.provenance),
        )


def _turned(one: Transcoder) -> Transcoder:
    def writer(w: Writer) -> Writer:
        return w if w.W_skip is None else replace(w, W_skip=w.W_skip.T.contiguous())

    return replace(one, writers=tuple(map(writer, one.writers)))


def _mean(of: Mapping[Site, WrittenFidelity]) -> float:
    return sum(one.fvu for one in of.values()) / len(of)


def _ordinary(x: Float[Tensor, "n d"]) -> Tensor:
    return torch.from_numpy(PLAIN.ordinary(x.norm(dim=1).numpy()))
