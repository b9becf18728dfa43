"""What a closed choice is made of: the record of each kind, and the records of one kind by name."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Literal, TypeVar

from polysem.errors import ConfigError, UnknownReferenceError


@dataclass(frozen=True)
class Word:
    """What every record has."""

    name: str
    """as it stands in settings and tables"""
    label: str
    """for people, in the middle of a sentence"""
    help: str
    """one line: what it is"""

    @property
    def title(self) -> str:
        """The label at the beginning of a line."""
        return self.label[:1].upper() + self.label[1:]


@dataclass(frozen=True)
class Locus(Word):
    """A place where a model is intervened on."""

    intervention: str
    """"module:attribute" of its `polysem.act.base.Intervention`"""
    source: str = "feature"
    """what is steered, in the singular; all but features are numbered on from the last feature"""
    reference: bool = False
    """whether a negative dose is what the positive one is compared with, rather than its mirror image; see `share`"""
    effect: str = "pushing along the direction by the dose: half the difference between +dose and -dose"
    """what an effect is the effect of"""

    @property
    def share(self) -> float:
        """Of the difference between the two ends of a dose, what is the effect. Where -dose is the mirror image of +dose,
        each end is one dose away from the unedited model, so one dose does half of it; where it is a reference (the
        matched text, the opposite value), the whole difference is what was done."""
        return 1.0 if self.reference else 0.5


@dataclass(frozen=True)
class Mark:
    """How a relation is drawn: a shape, and a colour for light and for dark ground."""

    shape: Literal["circle", "square", "triangle", "diamond"]
    light: str
    dark: str


@dataclass(frozen=True)
class Relation(Word):
    """What a steered direction is to the target that is read."""

    role: Literal["pair", "self", "reference", "null", "single", "given"]
    """pair: the source of a pair; self: the target's own direction; reference: what pairs are compared with; null:
    arms on which a slope must be nothing; single: of neurons taken one by one, by degree; given: vectors that the study
    brings, each by itself, and what is drawn for them"""
    mark: Mark
    null_of: str = ""
    """role null: the regressor whose slope must be nothing"""
    floor: int = 0
    """1, 2, …: its effects are a floor, what any direction does, and the least is taken first; 0: they are none"""
    carried: Literal["", "source", "direction"] = ""
    """what other loci than that of features take over of its arms: nothing; the source, as a clamp, a gradient or a
    snippet of that feature; or the direction as it is, where directions are added to the site"""


@dataclass(frozen=True)
class Control(Relation):
    """A relation that a study may ask for in `plan.controls`."""

    arms: str = ""
    """"module:attribute" of the function that draws its arms, (ArmsRequest) -> [Arm]; see `polysem.plan.arms`"""
    kind: str = ""
    """recipe kind that it brings; "" if its recipes are decoder rows"""
    direction: str = ""
    """"module:attribute" of the function that makes a unit direction of such a recipe, (Recipe, SiteContext) ->
    [d_in]; see `polysem.act.directions`"""
    row_of_target: str = ""
    """"module:attribute" of the function that makes the row which stands in for the target's own, (Recipe, target,
    SiteContext) -> [d_in]: tokens that are chosen by the decoder row are chosen by this one"""


@dataclass(frozen=True)
class Outcome(Word):
    """What is read from a next-token distribution for a set of tokens, before and after the edit."""

    unit: str
    read: str = ""
    """"module:attribute" of its function, (logits [rows d_vocab], TokenSets) -> [rows sets], in float64; or a named
    tuple of such, of which each outcome takes the field of its name, so that outcomes may share one computation. NaN
    becomes null. Empty: made from others, and from the direct path, which no distribution alone shows (`readouts.Outcomes`)"""
    symbol: str = ""
    scale: str = ""
    """name of the outcome whose declared margin holds for it, too"""
    less: str = ""
    """column of RESPONSE: the part of that outcome's linear response that this one leaves out"""


@dataclass(frozen=True)
class SideEffect(Word):
    """One measure of what steering along a direction does."""

    unit: str
    better: Literal["", "high", "low"] = ""
    """which end is clean, where one is"""


@dataclass(frozen=True)
class DoseUnit(Word):
    """What a strength is measured in."""

    axis: str = ""
    """as an axis of doses says it; empty where the label does"""
    asked: bool = False
    """whether `plan.dose_unit` may name it; the others follow from the locus"""
    paper: bool = False
    """whether only the presets `paper` and `both` plan it"""
    single: bool = False
    """whether it is of neurons taken one by one, which no contrast of pairs reads"""
    top: int = 0
    """of how many of the most likely tokens c and w are summed; 0: of all"""


@dataclass(frozen=True)
class TokenSet(Word):
    """Which of a target's tokens are read."""

    column: str
    """of FEATURES"""
    outcome: str = "logodds"
    """what the declared questions ask of these tokens: where they were chosen by a path, the effect beyond that path"""
    by_row: bool = False
    """whether they are those that the decoder row promotes through the unembedding"""


@dataclass(frozen=True)
class Category(Word):
    """A class of words toward which every push of a study is read."""

    @property
    def column(self) -> str:
        """Of TRIALS: the change in the log-odds of the category's own tokens."""
        return f"toward_{self.name}"


@dataclass(frozen=True)
class Reason(Word):
    """Why a planned trial has no outcome."""

    status: Literal["skipped", "failed", "absent"] = "skipped"
    """skipped: known beforehand; failed: tried, and no number came of it; absent: not run yet"""


@dataclass(frozen=True)
class Contrast(Word):
    """A number of the effects table."""

    question: str = ""
    """what it answers, with {} for the tokens that are read"""


@dataclass(frozen=True)
class Preset(Word):
    """A way of making the study's choices; what it needs beside the strict ones it names."""

    settings: str = ""
    """"module:attribute" of a function of the section `plan` that gives it with what the preset needs"""
    blocks: str = ""
    """"module:attribute" of a function of a study's own blocks and `ArmsRequest` that gives further ones"""
    one_similarity: bool = False
    """whether the gloss cosine alone says which pairs are unrelated, whatever `glosses.similarity` names"""


@dataclass(frozen=True)
class Similarity(Word):
    """A measure of how alike two features are in meaning, beside the cosine of their glosses."""

    reads: Literal["gloss", "tokens", "contexts"]
    """what of a feature: its glosses, the words on which it fires, or snippets of its contexts"""
    measure: str
    """"module:attribute" of a function of the argument (text) that gives a `polysem.glosses.similarity.Measure`"""
    argument: Literal["none", "embedder", "folder"] = "none"
    """what may stand behind the name and a colon; an embedder must"""
    covariate: bool = False
    """whether it is no similarity but something to hold fixed beside them"""


W = TypeVar("W", bound=Word)


class Vocabulary(Mapping[str, W], Generic[W]):
    """The records of one kind by name, in the order in which people are shown them."""

    def __init__(self, kind: str, *words: W, group: str = ""):
        self.kind = kind
        self._own = words
        self._group = group

    @cached_property
    def _words(self) -> dict[str, W]:
        words = {word.name: word for word in self._own}
        for point in entry_points(group=self._group) if self._group else ():
            word = _loaded(point, type(self._own[0]))
            if word.name in words:
                raise UnknownReferenceError(
                    f"entry point {point.value} of {self._group} names the {self.kind} {word.name!r}, which there is already",
                    hint=f"pip uninstall {point.dist.name if point.dist else point.value}",
                )
            words[word.name] = word
        return words

    @cached_property
    def packages(self) -> tuple[str, ...]:
        """Distributions that add members: their versions can change numbers."""
        points = entry_points(group=self._group) if self._group else ()
        return tuple(sorted({point.dist.name for point in points if point.dist}))

    def __getitem__(self, name: str) -> W:
        if name not in self._words:
            raise UnknownReferenceError(self.unknown(name))
        return self._words[name]

    def __contains__(self, name: object) -> bool:
        return name in self._words

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def unknown(self, name: str) -> str:
        """What is said of a name that is none of them."""
        close = difflib.get_close_matches(name, list(self), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown {self.kind} {name!r}; expected one of {', '.join(self)}{meant}"

    def check(self, name: str) -> str:
        """`name`, if it is one of them.

        Raises:
            ValueError: naming it and what is expected, for pydantic.
        """
        if name not in self:
            raise ValueError(self.unknown(name))
        return name

    def as_json(self) -> dict[str, dict[str, Any]]:
        """name -> its record, for the explorer."""
        return {name: asdict(word) for name, word in self.items()}


def _loaded(point: EntryPoint, kind: type[W]) -> W:
    try:
        word = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"entry point {point.name} = {point.value} of {point.group} cannot be loaded: {error}",
            hint=f"pip uninstall {point.dist.name}" if point.dist else None,
        ) from error
    if not isinstance(word, kind):
        raise ConfigError(
            f"entry point {point.name} = {point.value} of {point.group} is a {type(word).__name__}; expected a {kind.__name__}"
        )
    return word
