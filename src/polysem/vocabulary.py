"""The closed choices of a study, each at home here: a record with its name, label, unit, colour and one line of help.

Whoever lists, labels, colours or explains a locus, a relation, an outcome, a dose unit, a token set, a reason or a
contrast takes it from here: the settings, the plan, the estimates, the tables' documentation, the report's legends, the
explorer (as JSON) and the docs. Adding a member is adding a record. Loci, controls, outcomes and similarities may also come
from other distributions, by an entry point of the group `polysem.loci`, `polysem.controls`, `polysem.outcomes` or
`polysem.similarities` that names a record.

A record names what carries it out as "module:attribute", so that reading a finished run imports no torch.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator

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

    status: Literal["skipped", "failed", "absent"]
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


def attribute(reference: str) -> Any:
    """The object behind "module:attribute"."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


LOCI: Vocabulary[Locus] = Vocabulary(
    "locus",
    Locus(
        "feature",
        "feature directions",
        "the feature's unit decoder direction is added to the site",
        "polysem.act.feature:FEATURE",
    ),
    Locus(
        "clamp",
        "clamped features",
        "the feature's activation is set to a value, as the SAE reads it",
        "polysem.act.clamp:CLAMP",
        reference=True,
        effect="clamping the feature at the value rather than at its opposite: the whole difference",
    ),
    Locus(
        "gradient",
        "token gradients",
        "the gradient of the feature's activation in a context is added to the site",
        "polysem.act.gradient:GRADIENT",
    ),
    Locus(
        "prompt",
        "prompt injections",
        "text on which the feature fires is put into the prompt",
        "polysem.act.prompt:PROMPT",
        reference=True,
        effect="injecting the snippet rather than its match: the whole difference",
    ),
    Locus(
        "neuron",
        "coordinates of the site",
        "one coordinate of the site is multiplied",
        "polysem.act.neuron:NEURON",
        "coordinate",
        effect="pushing the way that the neuron writes when it is active, whatever its sign on the prompt: half the "
        "difference between +dose and -dose",
    ),
    Locus(
        "mlp_neuron",
        "neurons of the MLP",
        "one neuron of the layer's MLP is multiplied",
        "polysem.act.mlp:MLP_NEURON",
        "neuron",
        effect="pushing the way that the neuron writes when it is active, whatever its sign on the prompt: half the "
        "difference between +dose and -dose",
    ),
    group="polysem.loci",
)

_PAIR = Mark("circle", "#0b62a4", "#6db6f2")
_OPPOSED = Mark("diamond", "#0b62a4", "#6db6f2")
_SELF = Mark("circle", "#8b2f72", "#e59ad0")
_FEATURES = Mark("square", "#b35900", "#f2a65a")
_DIRECTIONS = Mark("triangle", "#3f7d20", "#9ccf6b")
_GIVEN = Mark("triangle", "#8b2f72", "#e59ad0")
_ISOTROPIC = Mark("diamond", "#3f7d20", "#9ccf6b")
_MATCHED = Mark("square", "#3f7d20", "#9ccf6b")
_NULLS = Mark("diamond", "#5f6b7a", "#aeb8c4")

CONTROLS: Vocabulary[Control] = Vocabulary(
    "control",
    Control(
        "random_feature",
        "random features",
        "another feature of the target's density and norm, nearly orthogonal to it",
        role="reference",
        mark=_FEATURES,
        floor=4,
        carried="source",
        arms="polysem.plan.arms:random_feature",
    ),
    Control(
        "random_direction",
        "random directions",
        "drawn from the covariance of the site's activations",
        role="reference",
        mark=_DIRECTIONS,
        floor=1,
        carried="direction",
        arms="polysem.plan.arms:random_direction",
        kind="covariance",
        direction="polysem.act.directions:covariance_direction",
    ),
    Control(
        "isotropic",
        "isotropic random directions",
        "drawn uniformly from all directions",
        role="reference",
        mark=_ISOTROPIC,
        floor=2,
        carried="direction",
        arms="polysem.plan.arms:isotropic",
        kind="isotropic",
        direction="polysem.act.directions:isotropic_direction",
    ),
    Control(
        "cosine_matched",
        "random directions at the pairs' cosines",
        "random, with the source's cosine to the target and its share of the shared mean direction",
        role="reference",
        mark=_MATCHED,
        arms="polysem.plan.arms:cosine_matched",
        kind="cosine_matched",
        direction="polysem.act.directions:cosine_matched_direction",
    ),
    Control(
        "high_attribution",
        "direct-logit-attribution matches",
        "another feature that promotes the target's tokens through the unembedding, nearly orthogonal to the target",
        role="reference",
        mark=_FEATURES,
        arms="polysem.plan.arms:high_attribution",
    ),
    Control(
        "swapped_target",
        "pairs, read on another target",
        "the pair's own source, read on the tokens of another target",
        role="reference",
        mark=_PAIR,
        arms="polysem.plan.arms:swapped_target",
    ),
    Control(
        "frozen_decoder",
        "decoder rows that were never trained",
        "sources chosen by the cosines of a decoder that was drawn once and never trained",
        role="null",
        mark=_NULLS,
        null_of="interference",
        arms="polysem.plan.negative:frozen_arms",
        kind="frozen",
        direction="polysem.act.directions:frozen_direction",
        row_of_target="polysem.act.directions:frozen_target",
    ),
    Control(
        "shuffled_gloss",
        "pairs with shuffled glosses",
        "sources chosen by the similarities of glosses that were dealt out anew",
        role="null",
        mark=_NULLS,
        null_of="similarity",
        arms="polysem.plan.negative:shuffled_arms",
    ),
    group="polysem.controls",
)
_INHERENT: tuple[Relation, ...] = (
    Relation(
        "pair",
        "interfering features",
        "features that lie close to the target",
        role="pair",
        mark=_PAIR,
        carried="source",
    ),
    Relation(
        "negative_pair",
        "features of negative interference",
        "features that lie as far from the target on its other side as the interfering ones do on its own",
        role="pair",
        mark=_OPPOSED,
        carried="source",
    ),
    Relation(
        "self",
        "the target itself",
        "the target's own direction",
        role="self",
        mark=_SELF,
        carried="source",
    ),
    Relation(
        "split_pair",
        "feature splitting",
        "a pair that is one concept in two features, by what they fire on",
        role="pair",
        mark=_PAIR,
    ),
    Relation(
        "related_pair",
        "pairs related by another measure",
        "a pair with unlike glosses that another measure of similarity finds related",
        role="pair",
        mark=_PAIR,
        carried="source",
    ),
    Relation(
        "rotated",
        "rotated neurons",
        "a direction of the neuron's share of the target, in a randomly rotated basis",
        role="reference",
        mark=_DIRECTIONS,
        floor=3,
    ),
    Relation(
        "single_neuron",
        "neurons by degree",
        "a neuron drawn by its degree, masked, ablated and amplified",
        role="single",
        mark=_FEATURES,
    ),
    Relation(
        "turned_neuron",
        "directions of a rotated basis by degree",
        "the same of a randomly rotated basis, by the degree that it has there",
        role="single",
        mark=_DIRECTIONS,
    ),
    Relation(
        "given",
        "vectors of one's own",
        "a steering vector that the study names, pushed for every target",
        role="given",
        mark=_GIVEN,
    ),
    Relation(
        "given_matched",
        "random directions at those vectors' cosines",
        "random, with the vector's cosine to the target",
        role="given",
        mark=_MATCHED,
    ),
)


class _Relations(Vocabulary[Relation]):
    """The relations that every study may have, then the controls, those of other distributions included."""

    @cached_property
    def _words(self) -> dict[str, Relation]:
        return {**super()._words, **CONTROLS}


RELATIONS: Vocabulary[Relation] = _Relations("relation", *_INHERENT)

OUTCOMES: Vocabulary[Outcome] = Vocabulary(
    "outcome",
    Outcome(
        "logodds",
        "log-odds",
        "logit of the probability of the target's tokens",
        "nats",
        "polysem.readouts:read_sets",
    ),
    Outcome(
        "cosine",
        "weighted cosine c",
        "mean cosine of the next token's embedding with the set's, weighted by probability",
        "cosine",
        "polysem.readouts:read_sets",
        "c",
    ),
    Outcome(
        "mass",
        "mass w",
        "probability of the target's tokens",
        "probability",
        "polysem.readouts:read_sets",
        "w",
    ),
    Outcome(
        "beyond",
        "log-odds beyond the direct path",
        "log-odds less what the same push does through final norm and unembedding alone",
        "nats",
        scale="logodds",
        less="linear_direct",
    ),
    group="polysem.outcomes",
)
"""the first is the primary one"""
KL = Word("kl", "KL", "KL(before || after) of the next-token distribution")

DOSE_UNITS: Vocabulary[DoseUnit] = Vocabulary(
    "dose unit",
    DoseUnit(
        "kl",
        "nats of KL",
        "what steering does to the next-token distribution",
        "nats of KL divergence that steering causes",
        asked=True,
    ),
    DoseUnit(
        "resid_norm",
        "mean norms",
        "mean norm of the site's activations on the prompt",
        "× mean norm of the site's activations",
        asked=True,
    ),
    DoseUnit(
        "absolute",
        "units of the activation",
        "the activation's own units",
        "length of the added vector",
        asked=True,
    ),
    DoseUnit(
        "factor",
        "relative change",
        "neurons: a coordinate is multiplied by 1 + dose",
        "relative change of the coordinate",
    ),
    DoseUnit(
        "neuron_factor",
        "relative change, neuron by neuron",
        "neurons by degree: -1 sets to 0 (masked) or to the mean (ablated), 1 doubles",
        single=True,
    ),
    DoseUnit(
        "injection", "injections", "prompts: 1 the snippet, -1 its match", "1: the snippet, −1: its match"
    ),
    DoseUnit(
        "max_act",
        "largest activations",
        "clamps: in units of the feature's largest activation",
        "× the feature's largest activation",
    ),
    DoseUnit(
        "paper_scale", "the paper's scales", "unit directions in the activation's own units", paper=True
    ),
    DoseUnit(
        "paper_factor",
        "the paper's factors",
        "relative changes of a coordinate; c and w over the ten likeliest tokens",
        paper=True,
        top=10,
    ),
    DoseUnit(
        "paper_degree",
        "the paper's factors, neuron by neuron",
        "the same, of one neuron of every bin of degree",
        paper=True,
        single=True,
        top=10,
    ),
    DoseUnit(
        "paper_injection",
        "the paper's injections",
        "snippets between asterisks; c and w over the thirty likeliest tokens",
        paper=True,
        top=30,
    ),
)

SIDE_EFFECTS: Vocabulary[SideEffect] = Vocabulary(
    "side effect",
    SideEffect("on_target", "on target", "odd change of the log-odds of the tokens it is meant to move", "nats"),
    SideEffect(
        "cleanliness", "cleanliness", "on target / sqrt(2 KL): the same at every small dose",
        "nats per root nat", "high",
    ),
    SideEffect(
        "rho", "share on target", "signed share of the shift that goes into its tokens, in [-1, 1]", "", "high"
    ),
    SideEffect("kl", "cost", "KL of the next-token distribution, mean over both ways", "nats"),
    SideEffect("strength", "strength", "length of what is added", "mean norms of the site"),
    SideEffect(
        "text", "cost on text", "change of the cross-entropy of the prompts' own tokens", "nats per token", "low"
    ),
    SideEffect(
        "cost_absent", "cost where absent",
        "KL at the mean length of all prompts, on those where the concept is absent", "nats", "low",
    ),
    SideEffect(
        "text_absent", "cost on text where absent",
        "change of the cross-entropy there, at the same length", "nats per token", "low",
    ),
    SideEffect(
        "stability", "stability", "mean cosine of the change of logits with its mean over prompts", "", "high"
    ),
    SideEffect(
        "against", "prompts against", "share of prompts whose change points away from the mean of the others",
        "fraction of prompts", "low",
    ),
    SideEffect("reach_sets", "reach, token sets", "participation ratio of features' token sets", "sets", "low"),
    SideEffect(
        "reach_features", "reach, features", "participation ratio of the readout's features", "features", "low"
    ),
    SideEffect(
        "reach_count", "reach, count", "features of the readout that move by more than a quarter of its median firing",
        "features", "low",
    ),
    SideEffect(
        "residual", "unseen share", "share of the change at the readout that its features do not give back",
        "fraction",
    ),
)  # fmt: skip
"""what `polysem side-effects` says of a direction, in the order of its card"""

TOKEN_SETS: Vocabulary[TokenSet] = Vocabulary(
    "token set",
    TokenSet("in", "tokens that activate the target", "T-in: what the target fires on", "tokens_in"),
    TokenSet(
        "out",
        "tokens the target writes",
        "T-out: what its decoder row promotes through W_U, or steering along it raises (features.tokens_out)",
        "tokens_out",
        "beyond",
        by_row=True,
    ),
)

COVARIATES: Vocabulary[Word] = Vocabulary(
    "covariate",
    Word(
        "attribution",
        "direct attribution",
        "what the source writes into the logits of T, above all tokens, per unit length",
    ),
    Word("overlap", "token overlap", "share of T among the source's own tokens"),
    Word("frequency", "frequency", "log10 of the share of tokens on which the source fires"),
)
"""of a source and a token set; held fixed in the regressions of record"""

POSITIONS: Vocabulary[Word] = Vocabulary(
    "positions",
    Word("last", "the last position", "only the last token's activation is edited"),
    Word("all", "all positions", "every token's, as the paper does"),
    Word("all_but_first", "all positions but the first", "every token's but that of the first"),
    Word(
        "all_no_bos",
        "all positions, without BOS",
        "every token's, of the prompt without its BOS; planned by presets",
    ),
)

REASONS: Vocabulary[Reason] = Vocabulary(
    "reason",
    Reason("absent", "not run yet", "the trial has no row", "absent"),
    Reason("empty_target_set", "the target has no tokens of that kind", "nothing to read", "skipped"),
    Reason("full_target_set", "the target's tokens are the whole vocabulary", "nothing to read", "skipped"),
    Reason(
        "token_out_of_vocab", "a target token is not in the model's vocabulary", "nothing to read", "skipped"
    ),
    Reason("zero_embedding", "a target token has a zero embedding", "its cosine is undefined", "skipped"),
    Reason("empty_prompt", "the prompt is empty", "nothing to run", "skipped"),
    Reason("prompt_too_long", "the prompt is longer than the model's context", "cannot be run", "skipped"),
    Reason("prompt_out_of_vocab", "a token is not in the model's vocabulary", "cannot be run", "skipped"),
    Reason(
        "no_edited_position",
        "the prompt is too short to be edited where the study asks",
        "nothing to edit",
        "skipped",
    ),
    Reason("zero_direction", "the direction is zero", "nothing to add", "skipped"),
    Reason("non_finite_direction", "the direction is not finite", "nothing to add", "skipped"),
    Reason(
        "control_unmatched",
        "no feature matches the target in density and norm",
        "the control does not exist",
        "skipped",
    ),
    Reason("no_covariance", "too few activations for a covariance", "the control does not exist", "skipped"),
    Reason(
        "unstable_gradient",
        "float32 and float64 disagree on the gradient: it is rounding",
        "no direction to add",
        "skipped",
    ),
    Reason(
        "no_round_trip",
        "the snippet is read back as other tokens: nobody could type it",
        "not injected",
        "skipped",
    ),
    Reason("no_activation", "the feature was never seen to be active", "no value to clamp to", "skipped"),
    Reason(
        "non_finite_baseline",
        "the unedited model gave NaN or infinite logits",
        "nothing to compare with",
        "failed",
    ),
    Reason("zero_activation", "the site's activations are zero", "a relative dose has no size", "failed"),
    Reason("non_finite_logits", "the edited model gave NaN or infinite logits", "nothing to read", "failed"),
    Reason(
        "kl_not_reached",
        "no strength gives the KL that the dose asks for",
        "the dose does not exist",
        "failed",
    ),
    Reason(
        "over_kl_budget",
        "the strength is over the KL budget of the study",
        "left out of the estimates by effects.stop_kl",
        "skipped",
    ),
)

CATEGORIES: Vocabulary[Category] = Vocabulary(
    "category",
    Category("location", "places", "words for places"),
    Category("science", "science", "words of the sciences"),
    Category("number", "numbers", "words for numbers, and figures"),
    Category("person", "people", "words for people"),
    Category("emotion", "emotions", "words for emotions"),
    Category("animal", "animals", "words for animals"),
    Category("color", "colours", "words for colours"),
    Category("time", "times", "words for times"),
)
"""categories of words that come with the library; their words are in `categories.toml`"""
Positions = Literal["last", "all", "all_but_first"]
Split = Literal["select", "confirm"]
TrialStatus = Literal["ok", "skipped", "failed"]

SIMILARITIES: Vocabulary[Similarity] = Vocabulary(
    "measure of similarity",
    Similarity(
        "gloss",
        "glosses",
        "cosine of the features' glosses, by an embedder",
        "gloss",
        "polysem.glosses.similarity:ByEmbedder",
        "embedder",
    ),
    Similarity(
        "tokens:glove",
        "words by GloVe",
        "cosine of the GloVe vectors of the words on which the features fire, each with its nearest of the other side",
        "tokens",
        "polysem.glosses.lexical:GloVe",
        "folder",
    ),
    Similarity(
        "tokens:wordnet",
        "words by WordNet",
        "path similarity of the words on which the features fire, each with its nearest of the other side",
        "tokens",
        "polysem.glosses.lexical:WordNet",
        "folder",
    ),
    Similarity(
        "tokens:frequency",
        "frequency of the words",
        "mean Zipf frequency of the words on which the two features fire",
        "tokens",
        "polysem.glosses.lexical:Frequency",
        covariate=True,
    ),
    Similarity(
        "contexts",
        "senses in contexts",
        "largest cosine between a concept of one and a concept of the other feature, of clusters of their contexts",
        "contexts",
        "polysem.glosses.concepts:Senses",
        "embedder",
    ),
    group="polysem.similarities",
)


def similarity(reference: str) -> tuple[Similarity, str]:
    """The record of a measure, and what stands behind its name: `gloss:minilm` is (gloss, "minilm").

    Raises:
        ValueError: no such measure, or an argument that is missing or not taken, for pydantic.
    """
    names = [n for n in SIMILARITIES if reference == n or reference.startswith(n + ":")]
    if not names:
        raise ValueError(SIMILARITIES.unknown(reference))
    word = SIMILARITIES[max(names, key=len)]
    argument = reference[len(word.name) + 1 :]
    if word.argument == "embedder" and not argument:
        raise ValueError(f"{reference!r} names no embedder; expected e.g. {word.name}:minilm")
    if word.argument == "none" and argument:
        raise ValueError(f"{word.name!r} takes nothing behind its name; got {reference!r}")
    return word, argument


def similarity_folder(reference: str) -> tuple[str, str]:
    """A measure's reference as (what stands before the folder that it names, that folder, "" if it names none)."""
    word, argument = similarity(reference)
    folder = argument if word.argument == "folder" else ""
    return reference[: len(reference) - len(folder)], folder


def similarity_name(reference: str) -> str:
    """How tables call a measure: of a folder its last part, so that they do not depend on where it lies."""
    before, folder = similarity_folder(reference)
    return before + PurePath(folder).name


_SETTINGS, _BLOCKS = "polysem.paper.strengths:with_isotropic", "polysem.paper.blocks:paper_blocks"
PRESETS: Vocabulary[Preset] = Vocabulary(
    "preset",
    Preset("strict", "strict", "the choices that this library stands for"),
    Preset(
        "paper", "the paper's", "the choices of arXiv 2505.11611", _SETTINGS, _BLOCKS, one_similarity=True
    ),
    Preset(
        "both",
        "both",
        "the strict choices and the paper's, and what each difference comes from",
        _SETTINGS,
        _BLOCKS,
    ),
)

LocusName = Annotated[str, AfterValidator(LOCI.check)]
PresetName = Annotated[str, AfterValidator(PRESETS.check)]
ControlName = Annotated[str, AfterValidator(CONTROLS.check)]
TokenSetName = Annotated[str, AfterValidator(TOKEN_SETS.check)]
CategoryName = Annotated[str, AfterValidator(CATEGORIES.check)]


def _similarity(reference: str) -> str:
    similarity(reference)
    return reference


SimilarityRef = Annotated[str, AfterValidator(_similarity)]


def _asked_unit(name: str) -> str:
    asked = Vocabulary("unit of doses", *(unit for unit in DOSE_UNITS.values() if unit.asked))
    return asked.check(name)


AskedUnit = Annotated[str, AfterValidator(_asked_unit)]


def contrast(name: str) -> Contrast:
    """The record of a contrast; those of a relation (`pair_minus_random_feature`) are made from the relation's.

    Raises:
        UnknownReferenceError: if there is no such contrast.
    """
    if name in CONTRASTS:
        return CONTRASTS[name]
    for prefix, role in (("pair_minus_", "reference"), ("null_slope_", "null"), ("given_minus_", "given")):
        rest = name.removeprefix(prefix)
        if rest == name:
            continue
        if role == "given" and rest in RELATIONS:
            other = RELATIONS[rest].label
            return Contrast(name, f"a vector of one's own minus {other}", "inside the same targets")
        if role == "reference" and rest in RELATIONS:
            other = RELATIONS[rest].label
            return Contrast(
                name,
                f"pairs minus {other}",
                "pair by pair where the control was drawn for a pair, inside the same targets otherwise",
                f"Do interfering features move the {{}} more than {other} do?",
            )
        if role == "null":
            return Contrast(name, f"slope on {rest} that must be nothing", "a negative control")
    return CONTRASTS[name]


CONTRASTS: Vocabulary[Contrast] = Vocabulary(
    "contrast",
    Contrast(
        "slope_interference",
        "slope of the effect on interference",
        "inside targets, with similarity, attribution, overlap and frequency beside it",
        "Does interference predict how much the {} move?",
    ),
    Contrast(
        "slope_interference_alone",
        "the same without covariates",
        "slope on interference inside targets, nothing beside it",
    ),
    Contrast(
        "slope_similarity",
        "slope of the effect on gloss similarity",
        "inside targets, with interference and the other covariates beside it",
    ),
    Contrast(
        "geometry_effect",
        "geometry effect",
        "random directions at the pairs' cosines minus random features, inside the same targets",
        "Does the angle alone move the {}: directions at the pairs' cosines against random features?",
    ),
    Contrast(
        "pair_minus_cosine_matched",
        "identity effect",
        "pairs minus random directions at their cosines, pair by pair",
        "Do interfering features move the {} beyond what their angle does?",
    ),
    Contrast("paper_model_a", "the paper's Model A, interference", "c after ~ interference + ... + c before"),
    Contrast(
        "paper_model_b", "the paper's Model B, interference", "relative change of c ~ interference + ..."
    ),
    Contrast("mean_effect", "mean effect", "mean over arms"),
    Contrast(
        "sign_agreement",
        "share of pairs whose effect has the sign of the interference",
        "pairs of positive against pairs of negative interference of one target and size; one half is chance",
        "Do the {} move the way the sign of the interference predicts?",
    ),
)
