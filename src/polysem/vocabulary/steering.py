"""What is steered: loci, relations and controls, units of doses, positions, presets, and why a trial has no outcome."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator

from polysem.vocabulary.words import (
    Control,
    DoseUnit,
    Locus,
    Mark,
    Preset,
    Reason,
    Relation,
    Vocabulary,
    Word,
)

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
        "self", "the target itself", "the target's own direction", role="self", mark=_SELF, carried="source"
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
    Reason("empty_target_set", "the target has no tokens of that kind", "nothing to read"),
    Reason("full_target_set", "the target's tokens are the whole vocabulary", "nothing to read"),
    Reason("token_out_of_vocab", "a target token is not in the model's vocabulary", "nothing to read"),
    Reason("zero_embedding", "a target token has a zero embedding", "its cosine is undefined"),
    Reason("empty_prompt", "the prompt is empty", "nothing to run"),
    Reason("prompt_too_long", "the prompt is longer than the model's context", "cannot be run"),
    Reason("prompt_out_of_vocab", "a token is not in the model's vocabulary", "cannot be run"),
    Reason(
        "no_edited_position", "the prompt is too short to be edited where the study asks", "nothing to edit"
    ),
    Reason("zero_direction", "the direction is zero", "nothing to add"),
    Reason("non_finite_direction", "the direction is not finite", "nothing to add"),
    Reason(
        "control_unmatched", "no feature matches the target in density and norm", "the control does not exist"
    ),
    Reason("no_covariance", "too few activations for a covariance", "the control does not exist"),
    Reason(
        "unstable_gradient",
        "float32 and float64 disagree on the gradient: it is rounding",
        "no direction to add",
    ),
    Reason("no_round_trip", "the snippet is read back as other tokens: nobody could type it", "not injected"),
    Reason("no_activation", "the feature was never seen to be active", "no value to clamp to"),
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
    ),
)

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

Positions = Literal["last", "all", "all_but_first"]
LocusName = Annotated[str, AfterValidator(LOCI.check)]
PresetName = Annotated[str, AfterValidator(PRESETS.check)]
ControlName = Annotated[str, AfterValidator(CONTROLS.check)]


def _asked_unit(name: str) -> str:
    asked = Vocabulary("unit of doses", *(unit for unit in DOSE_UNITS.values() if unit.asked))
    return asked.check(name)


AskedUnit = Annotated[str, AfterValidator(_asked_unit)]
