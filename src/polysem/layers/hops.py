"""How many hops an effect takes through transcoders: the known unfaithfulness of cross-layer ones, as a number.

Where the model computes C from B and B from A, a cross-layer transcoder may read A and write both at once: fewer active
features say the same outputs, and the hop from B to C is gone ("CLTs learn unfaithful circuits", 2026). The hop index of a
written direction is the share of what stands along it that features of *earlier* layers wrote: 0 where the layer that the
model uses does it, 1 where all of it was written ahead.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import MismatchError
from polysem.saes.transcoder import TranscoderSet
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
        found: the transcoders.
        seen: what stands where each reads.
        site: a written site.
        directions: in it.

    Raises:
        MismatchError: nobody writes there.
    """
    parts: list[tuple[bool, Tensor]] = []
    for one in found.layers:
        acts = one.encode(seen[one.reads].float())
        for writer in one.writers:
            if writer.site == site:
                along = (writer.part(acts, seen[one.reads].float()) - writer.b_dec) @ directions.T
                parts.append(((one.reads.layer or 0) < (site.layer or 0), along.double()))
    if not parts:
        raise MismatchError(
            f"nothing writes {site}; written are {', '.join(map(str, found.sites))}",
            hint=f"ask for {found.sites[-1]}",
        )
    whole = torch.stack([along for _, along in parts]).sum(0)
    earlier = torch.stack([along * early for early, along in parts]).sum(0)
    size = whole.square().sum(0)
    return torch.where(size > 0, (earlier * whole).sum(0) / size, torch.nan)
