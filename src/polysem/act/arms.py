"""Arms: which target is read while which direction is steered, and what a locus or a control draws them from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from polysem.act.snippets import Contexts
from polysem.config import PairsConfig, PlanConfig
from polysem.saes.base import SAE
from polysem.types import FeatureRef


class Arm(NamedTuple):
    """One direction to steer for one target."""

    relation: str
    """a word of `vocabulary.RELATIONS`"""
    target: int
    source: int | None
    draw: int
    recipe: str
    interference_bin: int
    interference: float | None
    similarity: float | None
    dictionary: str = ""
    """label of the source's dictionary, where it is another than the target's; the recipe then names it as `sae`"""
    pair_target: int | None = None
    """of a control that was drawn for one pair (or neuron): the target of that pair"""
    pair_source: int | None = None
    """... and its source"""

    def source_ref(self, own: str) -> FeatureRef | None:
        """The source, for a target of the dictionary `own`."""
        return None if self.source is None else FeatureRef(self.dictionary or own, self.source)


@runtime_checkable
class KnownFeatures(Protocol):
    """What is known of one dictionary's features; `polysem.plan.index.FeatureIndex` is one, and says what each is."""

    norms: cached_property[Float[np.ndarray, " d_sae"]]
    deciles: cached_property[Int[np.ndarray, " d_sae"]]
    usable: cached_property[Bool[np.ndarray, " d_sae"]]
    glossed: cached_property[Bool[np.ndarray, " d_sae"]]

    @property
    def label(self) -> str: ...
    @property
    def sae(self) -> SAE: ...
    @property
    def density(self) -> Float[np.ndarray, " d_sae"]: ...
    @property
    def texts_in(self) -> list[tuple[str, ...]]: ...
    @property
    def tokens_in(self) -> list[frozenset[int]]: ...
    @property
    def tokens_out(self) -> list[frozenset[int]]: ...
    @property
    def contexts(self) -> Contexts: ...
    @property
    def max_act(self) -> Float[np.ndarray, " d_sae"]: ...
    @property
    def embeddings(self) -> Float[np.ndarray, "d_sae d_embed"]: ...
    def alignments(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]: ...
    def similarities(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]: ...
    def duplicates(
        self, target: int, alignment: Float[np.ndarray, " d_sae"]
    ) -> Bool[np.ndarray, " d_sae"]: ...
    def mined_with(self, target: int) -> tuple[Int[np.ndarray, " n"], pa.Table]: ...


@dataclass(frozen=True)
class ArmsRequest:
    """What a locus or a control may draw its arms from. Every draw has a generator of its own, named by what it is
    for, so adding a target, a bin or a control changes no other draw."""

    index: KnownFeatures
    targets: Sequence[int]
    pairs: PairsConfig
    plan: PlanConfig
    seed: int
    arms: Sequence[Arm] = ()
    """drawn before: for a control the pairs; for a locus all arms of the features"""
    writes: Mapping[str, Float[np.ndarray, "n d_in"]] = field(default_factory=dict[str, np.ndarray])
    """by locus of neurons, what each neuron writes into the site"""
    embedding: Float[np.ndarray, "d_vocab d_model"] | None = None
    """of the model's input tokens; None without a model"""
    clusters: Int[np.ndarray, " d_sae"] | None = None
    """gloss cluster of every feature at the paper's cut, -1 without; None where glosses have no clusters"""

    @cached_property
    def alignments(self) -> Float[np.ndarray, "n_targets d_sae"]:
        """Cosine of every decoder row with each target's."""
        return self.index.alignments(self.targets)

    @cached_property
    def similarities(self) -> Float[np.ndarray, "n_targets d_sae"]:
        """Gloss similarity of every feature with each target; NaN where either has no gloss."""
        return self.index.similarities(self.targets)
