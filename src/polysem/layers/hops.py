"""How many hops an effect takes through transcoders: the known unfaithfulness of cross-layer ones, as a number.

Where the model computes C from B and B from A, a cross-layer transcoder may read A and write both at once: fewer active
features say the same outputs, and the hop from B to C is gone ("CLTs learn unfaithful circuits", 2026). The hop index of a
written direction is the share of what stands along it that features of *earlier* layers wrote: 0 where the layer that the
model uses does it, 1 where all of it was written ahead.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.errors import MismatchError
from polysem.saes.transcoder import TranscoderSet
from polysem.side_effects.measures import Estimate, jackknife
from polysem.types import Site


def hop_index(
    found: TranscoderSet,
    seen: Mapping[Site, Float[Tensor, "n _d"]],
    *,
    site: Site,
    directions: Float[Tensor, "k d_out"],
) -> Float[Tensor, " k"]:
    """Share of what is written along each direction that comes from earlier layers; NaN where nothing is.

    Shares of all layers add up to 1: each is the covariance (about 0) of its part with the whole, over the whole's square.
    Biases, which no feature carries, are left out.

    Args:
        seen: what stands where each reads.
        site: a written site.
        directions: in it.

    Raises:
        MismatchError: nobody writes there.
    """
    earlier, whole = _along(found, seen, site, directions)
    size = whole.square().sum(0)
    return torch.where(size > 0, (earlier * whole).sum(0) / size, torch.nan)


def hop_share(
    found: TranscoderSet,
    seen: Mapping[Site, Float[Tensor, "n _d"]],
    *,
    site: Site,
    groups: Int[np.ndarray, " n"],
) -> Estimate:
    """The hop index over all of a site at once: of the squared length of what features write there, the share that features
    of earlier layers wrote; with its 95 % interval over groups.

    Args:
        seen: what stands where each reads.
        site: a written site.
        groups: of every row of `seen`, e.g. its document.

    Raises:
        MismatchError: nobody writes there.
    """
    width = next((w.W_dec.shape[1] for one in found.layers for w in one.writers if w.site == site), 1)
    earlier, whole = _along(found, seen, site, torch.eye(width))
    known, back = np.unique(groups, return_inverse=True)
    top, below = (
        np.bincount(back, weights=x.sum(1).numpy(), minlength=len(known))
        for x in (earlier * whole, whole.square())
    )
    return jackknife(lambda p: float(top[p].sum() / below[p].sum()), np.arange(len(known)))


def _along(
    found: TranscoderSet,
    seen: Mapping[Site, Float[Tensor, "n _d"]],
    site: Site,
    directions: Float[Tensor, "k d_out"],
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """What features of earlier layers write at a site along directions, and what all do."""
    parts: list[tuple[bool, Tensor]] = []
    for one in found.layers:
        acts = one.encode(seen[one.reads].float())
        for writer in one.writers:
            if writer.site == site:
                along = (writer.part(acts, seen[one.reads].float()) - writer.b_dec) @ directions.T
                parts.append(((one.reads.layer or 0) < (site.layer or 0), along.detach().double()))
    if not parts:
        raise MismatchError(
            f"nothing writes {site}; written are {', '.join(map(str, found.sites))}",
            hint=f"ask for {found.sites[-1]}",
        )
    whole = torch.stack([along for _, along in parts]).sum(0)
    return torch.stack([along * early for early, along in parts]).sum(0), whole
