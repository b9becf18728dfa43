"""What an intervention is: a recipe in the plan, arrays at run time.

A plan row never stores a vector. It stores a `Recipe` - "decoder row 12 of this SAE", "draw 3 from the
covariance of the site" - as canonical JSON, so the same plan can be read, hashed and run elsewhere. At run
time the intervention of the row's locus first *realises* the recipe (a unit direction; once per SAE and
recipe) and then *prepares* many pushes at once: token rows and row-wise edits for one forward pass. A new
locus is a class with these two methods and a line in `LOCI`; no model backend learns of it.

What cannot be carried out is `Refused` with a word of `REASONS`, and becomes a row of the trials table.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import FormatError, MismatchError, PolysemError
from polysem.linear.decompose import common_mode
from polysem.models.base import ModelSpec, WhiteBoxModel
from polysem.registry import Registry
from polysem.saes.base import SAE
from polysem.types import Locus

LOCI = Registry(
    "locus",
    {
        "feature": "polysem.interventions.feature:FEATURE",
        "clamp": "polysem.interventions.clamp:CLAMP",
        "gradient": "polysem.interventions.feature:FEATURE",
        "prompt": "polysem.interventions.prompt:PROMPT",
        "neuron": "polysem.interventions.neuron:NEURON",
        "mlp_neuron": "polysem.interventions.mlp:MLP_NEURON",
    },
)
"""Locus -> its intervention."""

KINDS = Registry(
    "recipe kind",
    {
        "decoder": "polysem.interventions.feature:decoder_direction",
        "covariance": "polysem.interventions.controls:covariance_direction",
        "isotropic": "polysem.interventions.controls:isotropic_direction",
        "cosine_matched": "polysem.interventions.controls:cosine_matched_direction",
        "frozen": "polysem.interventions.negative:frozen_direction",
        "unmatched": "polysem.interventions.controls:unmatched_control",
        "gradient": "polysem.interventions.gradient:token_gradient",
        "clamp": "polysem.interventions.clamp:clamped_feature",
        "mlp_neuron": "polysem.interventions.mlp:mlp_coordinate",
        "rotated_mlp": "polysem.interventions.mlp:rotated_mlp",
        "neuron": "polysem.interventions.neuron:coordinate",
        "rotated": "polysem.interventions.neuron:rotated_coordinate",
        "snippet": "polysem.interventions.prompt:snippet",
    },
)
"""Recipe kind -> function (Recipe, Bench) -> direction, for the loci that push along a direction."""

assert set(LOCI) <= set(get_args(Locus))

RESOLUTION_REASONS = (
    *("zero_direction", "non_finite_direction", "control_unmatched", "no_covariance"),
    *("unstable_gradient", "no_round_trip", "no_activation"),
)
"""Why a recipe cannot be realised."""


class Refused(PolysemError):
    """A recipe that cannot be carried out: `reason` is a word of `trials.REASONS`."""

    def __init__(self, reason: str):
        super().__init__(f"not carried out: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Recipe:
    """How a push is made: a kind and its arguments, equal when their text is equal."""

    kind: str
    arguments: tuple[tuple[str, int | float | str], ...]

    @classmethod
    def of(cls, kind: str, **arguments: int | float | str) -> "Recipe":
        return cls(kind, tuple(sorted(arguments.items())))

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """The recipe of its text.

        Raises:
            FormatError: if the text is no recipe of a known kind in canonical form.
        """
        try:
            fields = json.loads(text)
            recipe = cls.of(fields.pop("kind"), **fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise FormatError(
                f"plan: {text!r} is no recipe; expected JSON like {Recipe.of('decoder', feature=12).text}",
                hint="polysem plan",
            ) from error
        if recipe.kind not in KINDS or recipe.text != text:
            raise FormatError(
                f"plan: recipe {text!r} is not canonical JSON of a kind in {', '.join(KINDS)}",
                hint="polysem plan",
            )
        return recipe

    @cached_property
    def text(self) -> str:
        """Canonical JSON: keys sorted, no spaces."""
        return json.dumps({"kind": self.kind, **dict(self.arguments)}, sort_keys=True, separators=(",", ":"))

    def text_of(self, name: str) -> str:
        """A text argument."""
        value = dict(self.arguments).get(name)
        if not isinstance(value, str):
            raise FormatError(
                f"plan: recipe {self.text} needs a text {name!r}, got {value!r}", hint="polysem plan"
            )
        return value

    def token_ids(self, name: str) -> list[int]:
        """Token ids, written as numbers with spaces between."""
        words = self.text_of(name).split()
        if not words or not all(word.isdecimal() for word in words):
            raise FormatError(
                f"plan: recipe {self.text} needs token ids {name!r}, got {self.text_of(name)!r}",
                hint="polysem plan",
            )
        return [int(word) for word in words]

    def integer(self, name: str) -> int:
        """An integer argument."""
        value = dict(self.arguments).get(name)
        if not isinstance(value, int):
            raise FormatError(
                f"plan: recipe {self.text} needs an integer {name!r}, got {value!r}", hint="polysem plan"
            )
        return value


@dataclass(frozen=True)
class Bench:
    """What a recipe may be realised from: the SAE whose site is edited, the model, and activations of that
    site."""

    label: str
    sae: SAE
    spec: ModelSpec
    activations: Callable[[], Float[np.ndarray, "n d_in"]]
    """float64 activations of the site on all prompts of the plan, every position but the first"""
    model: WhiteBoxModel | None = None
    """for recipes that need more of the model than its activations"""

    @cached_property
    def common_mode(self) -> Float[Tensor, "rank d_in"]:
        """Orthonormal basis of what all decoder directions of the SAE share."""
        return common_mode(self.sae.W_dec)

    @cached_property
    def mlp_writes(self) -> Float[np.ndarray, "d_mlp d_in"]:
        """What one unit more of each neuron of the layer's MLP adds to the site.

        Raises:
            ConfigError, SiteError: if there is no model, or no such neurons.
        """
        from polysem.interventions.mlp import mlp_writes

        return mlp_writes(self.model, self.sae)


@dataclass(frozen=True)
class Prompt:
    """One prompt as the run sees it."""

    token_ids: tuple[int, ...]
    edited: Bool[np.ndarray, " pos"]
    """where the plan edits"""
    text_span: tuple[int, int] | None = None
    """tokens [start, stop) of the prompt's own text inside a chat template; None without one"""


class Push(NamedTuple):
    """One row of a forward pass: what was realised, and its signed strength."""

    realised: np.ndarray
    """a unit direction [d_in]; for the locus `prompt` the two rows of token ids [2 n]"""
    dose: float


class Prepared(NamedTuple):
    """Input of one forward pass."""

    tokens: Int[Tensor, "rows pos"]
    edits: list[Edit]


@runtime_checkable
class Intervention(Protocol):
    """One locus."""

    steers: bool
    """whether a recipe is a direction at the SAE's site, with a strength that can be dosed"""

    def realise(self, recipe: Recipe, bench: Bench) -> np.ndarray:
        """The unit direction of a recipe, float64 [d_in]; token ids [2 n] where the locus does not steer.

        Raises:
            Refused: with the reason, if there is none.
        """
        ...

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """Tokens and edits, one row per push, in the order given."""
        ...


def edited_positions(positions: str, n: int) -> Bool[np.ndarray, " n"]:
    """Which of `n` positions a plan's `positions` edits.

    Raises:
        MismatchError: if the word is not one of last, all, all_but_first.
    """
    mask = np.zeros(n, dtype=bool)
    match positions:
        case "last":
            mask[-1:] = True
        case "all":
            mask[:] = True
        case "all_but_first":
            mask[1:] = True
        case _:
            raise MismatchError(
                f"plan: positions {positions!r}; expected last, all or all_but_first", hint="polysem plan"
            )
    return mask
