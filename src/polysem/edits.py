"""The three edits that every intervention becomes: arrays only, no notion of a feature.

Edits are row-wise: row b of a batch has its own vector (or index, factor, value) and its own mask of
positions, so many directions, strengths and controls share one forward pass. A model backend applies a list
of edits in the order given; two edits at one site compose, they never overwrite each other.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from jaxtyping import Bool, Float, Int

from polysem.types import Site

if TYPE_CHECKING:
    from torch import Tensor
else:  # the annotation is enough for readers; torch is imported only where arrays are made
    Tensor = "Tensor"


@dataclass(frozen=True)
class Add:
    """h[b, pos] += vector[b] wherever mask[b, pos]."""

    site: Site
    vector: "Float[Tensor, 'batch d']"
    mask: "Bool[Tensor, 'batch pos']"


@dataclass(frozen=True)
class Scale:
    """h[b, pos, index[b]] *= factor[b] wherever mask[b, pos]."""

    site: Site
    index: "Int[Tensor, ' batch']"
    factor: "Float[Tensor, ' batch']"
    mask: "Bool[Tensor, 'batch pos']"


@dataclass(frozen=True)
class Clamp:
    """h[b, pos] += (value[b] - <h[b, pos], reader[b]> - offset[b]) * writer[b] wherever mask[b, pos].

    With reader = writer = a unit direction and offset = 0 this sets the coordinate along the direction to
    `value`.
    """

    site: Site
    reader: "Float[Tensor, 'batch d']"
    writer: "Float[Tensor, 'batch d']"
    value: "Float[Tensor, ' batch']"
    offset: "Float[Tensor, ' batch']"
    mask: "Bool[Tensor, 'batch pos']"


Edit = Union[Add, Scale, Clamp]  # noqa: UP007  (a runtime union of dataclasses, used by isinstance and by beartype)
