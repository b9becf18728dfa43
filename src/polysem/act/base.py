"""What an intervention is: a recipe in the plan, arrays at run time.

A plan row never stores a vector. It stores a `Recipe` - "decoder row 12 of this SAE", "draw 3 from the
covariance of the site" - as canonical JSON, so the same plan can be read, hashed and run elsewhere. At run
time the intervention of the row's locus first *realises* the recipe (a unit direction; once per SAE and
recipe) and then *prepares* many rows at once: tokens and row-wise edits for one forward pass. A new locus is one
file with a class of `Intervention`, and a record in `vocabulary.LOCI`; no model backend learns of it.

What cannot be carried out is `Refused` with a word of `vocabulary.REASONS`, and becomes a row of the trials table.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import UnionType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.arms import Arm, ArmsRequest
from polysem.config import PlanConfig
from polysem.edits import Edit
from polysem.errors import FormatError, MismatchError, PolysemError
from polysem.linear.decompose import mean_direction
from polysem.models.base import ModelSpec, WhiteBoxModel
from polysem.saes.base import SAE
from polysem.types import Site
from polysem.vocabulary import LOCI, REASONS, attribute

T = TypeVar("T")


class Refused(PolysemError):
    """A recipe that cannot be carried out: `reason` is a word of `vocabulary.REASONS`."""

    def __init__(self, reason: str):
        super().__init__(f"not carried out: {REASONS[reason].label} ({reason})")
        self.reason = reason


@dataclass(frozen=True)
class Recipe:
    """How a row is steered: a kind and its arguments, equal when their text is equal. The argument `sae` names the
    source's dictionary where it is another than the target's."""

    kind: str
    arguments: tuple[tuple[str, int | float | str], ...]

    @classmethod
    def of(cls, kind: str, **arguments: int | float | str) -> "Recipe":
        return cls(kind, tuple(sorted(arguments.items())))

    @classmethod
    @lru_cache(maxsize=1 << 16)
    def parse(cls, text: str) -> "Recipe":
        """The recipe of its text.

        Raises:
            FormatError: if the text is no recipe in canonical form.
        """
        try:
            fields = json.loads(text)
            recipe = cls.of(fields.pop("kind"), **fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise FormatError(
                f"plan: {text!r} is no recipe; expected JSON like {Recipe.of('decoder', feature=12).text}",
                hint="polysem plan STUDY.toml",
            ) from error
        if recipe.text != text:
            raise FormatError(
                f"plan: recipe {text!r} is not canonical JSON, which is {recipe.text}",
                hint="polysem plan STUDY.toml",
            )
        return recipe

    @cached_property
    def text(self) -> str:
        """Canonical JSON: keys sorted, no spaces."""
        return json.dumps({"kind": self.kind, **dict(self.arguments)}, sort_keys=True, separators=(",", ":"))

    def _argument(self, name: str, kind: type | UnionType, what: str) -> Any:
        value = dict(self.arguments).get(name)
        if not isinstance(value, kind):
            raise FormatError(
                f"plan: recipe {self.text} needs {what} {name!r}, got {value!r}",
                hint="polysem plan STUDY.toml",
            )
        return value

    def text_of(self, name: str) -> str:
        """A text argument."""
        return self._argument(name, str, "a text")

    def token_ids(self, name: str) -> list[int]:
        """Token ids, written as numbers with spaces between."""
        words = self.text_of(name).split()
        if not words or not all(word.isdecimal() for word in words):
            raise FormatError(
                f"plan: recipe {self.text} needs token ids {name!r}, got {self.text_of(name)!r}",
                hint="polysem plan STUDY.toml",
            )
        return [int(word) for word in words]

    def integer(self, name: str) -> int:
        """An integer argument."""
        return self._argument(name, int, "an integer")

    def number(self, name: str) -> float:
        """A numeric argument."""
        return float(self._argument(name, int | float, "a number"))

    @property
    def centre(self) -> float:
        """What a relative strength is measured from: the argument `centre`, or 0."""
        value = dict(self.arguments).get("centre", 0.0)
        return float(value) if isinstance(value, int | float) else 0.0

    def dictionary(self, default: str) -> str:
        """Label of the dictionary whose site is edited: the source's, or `default` where that is the target's."""
        return self.text_of("sae") if "sae" in dict(self.arguments) else default


UNMATCHED = Recipe.of("unmatched").text
"""of a control that the plan could not match: planned, and refused, so that it is counted"""


@dataclass(frozen=True)
class SiteContext:
    """What a recipe may be realised from: the dictionary whose site is edited, the model, and activations of that
    site."""

    label: str
    sae: SAE
    spec: ModelSpec
    activations: Callable[[], Float[np.ndarray, "n d_in"]]
    """float64 activations of the site on all prompts of the plan, every position but the first"""
    model: WhiteBoxModel | None = None
    """for recipes that need more of the model than its activations"""

    @cached_property
    def mean_direction(self) -> Float[Tensor, "rank d_in"]:
        """Orthonormal basis of what all decoder directions of the SAE share."""
        return mean_direction(self.sae.W_dec)

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made when it is first needed and kept for this site."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def dtype(self) -> torch.dtype:
        """Of edits: float64 in a model of float64, float32 in all others."""
        return torch.float64 if self.spec.dtype == "float64" else torch.float32

    def with_model(self, what: str) -> WhiteBoxModel:
        """The model. Raises MismatchError, naming what needs it, if there is none."""
        if self.model is None:
            raise MismatchError(f"{what} needs the model", hint="give SiteContext(model=...)")
        return self.model

    def rows(self, n: int, prompt: "EditedPrompt") -> tuple[Int[Tensor, "n pos"], Bool[Tensor, "n pos"]]:
        """Tokens and mask of `n` rows of the same prompt, on the model's device."""
        tokens = torch.as_tensor(prompt.token_ids, dtype=torch.long).repeat(n, 1)
        mask = torch.as_tensor(prompt.edited).repeat(n, 1)
        return tokens.to(self.spec.device), mask.to(self.spec.device)


@dataclass(frozen=True)
class EditedPrompt:
    """One prompt as the run sees it."""

    token_ids: tuple[int, ...]
    edited: Bool[np.ndarray, " pos"]
    """where the plan edits"""
    text_span: tuple[int, int] | None = None
    """tokens [start, stop) of the prompt's own text inside a chat template; None without one"""


class Steer(NamedTuple):
    """One row of a forward pass: what was realised, and its signed strength."""

    realised: np.ndarray
    """a unit direction [d_in]; for the locus `prompt` the two rows of token ids [2 n]"""
    dose: float
    centre: float = 0.0
    """of a relative strength: the value that is as good as nothing, from which it is measured"""


class Forward(NamedTuple):
    """Input of one forward pass."""

    tokens: Int[Tensor, "rows pos"]
    edits: list[Edit]


Realise = Callable[[Recipe, SiteContext], np.ndarray]


class Intervention(ABC):
    """One locus: what its recipes become, what edits that is, and which arms and strengths a study plans there."""

    steers = False
    """whether a recipe is a direction at the dictionary's site, whose cosine with the target's is known"""
    relative = False
    """whether a strength multiplies what is there, so that its size owes nothing to the site's norm"""
    adds = False
    """whether a strength is the length of what is added to the dictionary's site at every edited position"""
    inside_text = False
    """whether tokens are put into the prompt's own text, which must then be found inside a chat template"""
    neurons = ""
    """kind of neurons in the table NEURONS, where the locus has neurons"""

    @property
    @abstractmethod
    def kinds(self) -> Mapping[str, Realise]:
        """Recipe kind -> what makes an array of it: the unit direction, float64 [d_in], where the locus steers."""

    def realise(self, recipe: Recipe, context: SiteContext) -> np.ndarray:
        """The array of a recipe.

        Raises:
            Refused: with the reason, if there is none.
            FormatError: if the locus has no recipes of this kind.
        """
        if recipe.text == UNMATCHED:
            raise Refused("control_unmatched")
        if recipe.kind not in self.kinds:
            raise FormatError(
                f"plan: recipe {recipe.text} is of no kind in {', '.join(self.kinds)}",
                hint="polysem plan STUDY.toml",
            )
        return self.kinds[recipe.kind](recipe, context)

    @abstractmethod
    def prepare(self, steers: Sequence[Steer], prompt: EditedPrompt, context: SiteContext) -> Forward:
        """Tokens and edits, one row per steered row, in the order given."""

    @abstractmethod
    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """The arms of this locus: `request.arms`, those of the features, carried over, or arms of its own."""

    @abstractmethod
    def doses(self, plan: PlanConfig) -> tuple[tuple[float, ...], str]:
        """Strengths above zero (both signs are run) and their unit, a word of `vocabulary.DOSE_UNITS`."""

    def site(self, sae: SAE) -> Site:
        """Where the locus edits for a dictionary."""
        return sae.writes

    def writes(self, model: WhiteBoxModel | None, sae: SAE) -> Float[np.ndarray, "n d_in"]:
        """What one unit more of each neuron adds to the site, where the locus has neurons."""
        raise NotImplementedError(f"{type(self).__name__} has no neurons")


def intervention(locus: str) -> Intervention:
    """The intervention of a locus. Raises UnknownReferenceError if there is no such locus."""
    return attribute(LOCI[locus].intervention)


def decoder_row(context: SiteContext, feature: int) -> Float[np.ndarray, " d_in"]:
    """W_dec[feature] in float64, as the SAE stores it.

    Raises:
        MismatchError: if the SAE has no such feature.
    """
    sae = context.sae
    if not 0 <= feature < sae.d_sae:
        raise MismatchError(
            f"plan: feature {feature} of SAE {context.label!r}, which has features 0 to {sae.d_sae - 1}",
            hint="polysem plan STUDY.toml, with the SAE that is loaded now",
        )
    return sae.W_dec[feature].detach().cpu().double().numpy()


def length(rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """Norm of every row."""
    return rows.norm(dim=-1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  (torch does not say)


def unit(vector: Float[np.ndarray, " d_in"]) -> Float[np.ndarray, " d_in"]:
    """`vector` at norm 1.

    Raises:
        Refused: if it is zero or not finite.
    """
    if not np.isfinite(vector).all():
        raise Refused("non_finite_direction")
    # Scaling first keeps the squares of very small or large entries representable.
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        raise Refused("zero_direction")
    scaled = vector / largest
    return scaled / np.linalg.norm(scaled)


def some_edited(positions: str, n: int) -> Bool[np.ndarray, " n"]:
    """`edited_positions`, of which there must be one.

    Raises:
        MismatchError: if the row has none.
    """
    mask = edited_positions(positions, n)
    if not mask.any():
        raise MismatchError(
            f"a prompt of {n} tokens has no position among {positions!r}", hint="use longer prompts"
        )
    return mask


def edited_positions(positions: str, n: int) -> Bool[np.ndarray, " n"]:
    """Which of `n` positions a plan's `positions` edits.

    Raises:
        MismatchError: if the word is not one of last, all, all_but_first.
    """
    mask = np.zeros(n, dtype=bool)
    match positions:
        case "last":
            mask[-1:] = True
        case "all" | "all_no_bos":
            mask[:] = True
        case "all_but_first":
            mask[1:] = True
        case _:
            raise MismatchError(
                f"plan: positions {positions!r}; expected last, all or all_but_first",
                hint="polysem plan STUDY.toml",
            )
    return mask
