"""Side effects of directions: tables of `polysem side-effects`."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import FEATURE, SAE, STRING, count, index, number, text


def _perhaps(name: str, unit: str, meaning: str) -> Column:
    return number(name, unit, meaning, nullable=True)


DIRECTION = text("direction", "name of the direction")
_LO = _perhaps("lo", "as value", "95 % interval, jackknife over prompts")
_HI = _perhaps("hi", "as value", "upper end")

DIRECTIONS = Schema(
    "directions",
    1,
    ("direction",),
    (
        DIRECTION,
        text("kind", "feature | texts | models | file | given (a tensor) | repaired"),
        text("site", "hook point that is steered"),
        text("sae", "dictionary of a feature", nullable=True),
        index("feature", "row of W_dec of a feature", nullable=True),
        text("gloss", "of a feature", nullable=True),
        Column("tokens", pa.list_(STRING), "", "what it is meant to move"),
        text("tokens_from", "who said so: feature | asked | direct (what it writes through W_U by itself)"),
        text("positions", "which positions are steered"),
        text("dose_unit", "kl (nats) | coefficient (times the vector as given)"),
        number("dose", "dose_unit", "what was asked for"),
        number("length", "activation", "of the vector as given"),
        _perhaps("coefficient", "times the vector", "mean over prompts of what was added"),
        text("readout", "dictionary whose features were looked at", nullable=True),
        _perhaps("threshold", "activation", "beyond which one of its features counts as moved"),
        _perhaps("percentile", "fraction", "features of the site's dictionary that are less clean, each on its own tokens, by gradient"),
        count("n_prompts", "prompts", "of both halves"),
        count("n_reached", "prompts", "on which the dose was reached"),
        count("n_null", "directions", "isotropic ones pushed at the same KL"),
    ),
)  # fmt: skip

SIDE_EFFECTS = Schema(
    "side_effects",
    1,
    ("direction", "measure"),
    (
        DIRECTION,
        text("measure", "as in the closed choices"),
        _perhaps("value", "as the measure", "on the confirm prompts"),
        _LO,
        _HI,
        _perhaps("forecast", "as value", "by the gradients of the select prompts, no push"),
        _perhaps("null", "as value", "median over isotropic pushes"),
        _perhaps("null_lo", "as value", "their 5 % quantile"),
        _perhaps("null_hi", "as value", "their 95 % quantile"),
        _perhaps("p", "probability", "two-sided, by rank among isotropic pushes"),
        count("n_prompts", "prompts", "confirm prompts on which the dose was reached"),
        count("n_null", "directions", "isotropic pushes with a number"),
    ),
)

SIDE_EFFECTS_MOVED = Schema(
    "side_effects_moved",
    1,
    ("direction", "kind", "rank"),
    (
        DIRECTION,
        text("kind", "tokens (a feature's) | category (of words) | feature (of the readout)"),
        index("rank", "0 moved most on the select prompts"),
        index("place", "feature number, or place of the category"),
        text("name", "feature and first tokens, category, or feature and gloss"),
        number("selected", "as value", "mean on the select prompts, by which it was chosen"),
        number("value", "nats; of features activation", "mean on the confirm prompts"),
        _LO,
        _HI,
        _perhaps("forecast", "as value", "by the gradients of the select prompts"),
        _perhaps("null_hi", "as value", "95 % quantile of the size under isotropic pushes"),
        Column(
            "beyond", pa.bool_(), "", "whether its interval excludes 0 and it moved more than that quantile"
        ),
        count("n_prompts", "prompts", "that enter"),
    ),
)

SIDE_EFFECTS_LINEAR = Schema(
    "side_effects_linear",
    1,
    ("sae", "feature"),
    (
        SAE,
        FEATURE,
        _perhaps("on_target", "nats", "at the dose, by gradient"),
        _perhaps("cleanliness", "nats per root nat", "on target / sqrt(2 KL)"),
        _perhaps("percentile", "fraction", "of the features with a number that are less clean"),
        _perhaps("kl", "nats per squared activation", "of a unit push"),
        _perhaps("stability", "cosine", "of the change of logits with its mean"),
        _perhaps("reach_sets", "sets", "participation ratio of token sets"),
        count("n_prompts", "prompts", "that gradients are averaged over"),
    ),
)

CLEANER = Schema(
    "cleaner",
    1,
    ("direction", "rank"),
    (
        DIRECTION,
        index("rank", "0 is the cleanest, by gradient"),
        SAE,
        FEATURE,
        text("gloss", "of the feature", nullable=True),
        number("cleanliness", "nats per root nat", "of the feature on the direction's tokens, either way"),
        number("reach_sets", "sets", "participation ratio of token sets"),
        number("cosine", "cosine", "with the direction"),
    ),
)

FORECASTS = Schema(
    "forecasts",
    1,
    ("sae", "outcome", "predictors"),
    (
        SAE,
        text("outcome", "a measure"),
        text("predictors", "which: all, weights, one baseline, or a difference of two"),
        _perhaps("spearman", "correlation", "held out by feature; of a difference the difference"),
        _perhaps("lo", "correlation", "95 % interval, jackknife over features"),
        _perhaps("hi", "correlation", "upper end"),
        _perhaps("reliability", "correlation", "of the outcome: two halves of its prompts, Spearman-Brown"),
        _perhaps("ceiling", "correlation", "its root: what a forecast without error would have"),
        _perhaps("p", "probability", "labels permuted within density deciles, or that a difference is none"),
        _perhaps("p_equivalent", "probability", "that a partial correlation lies beyond the margin"),
        _perhaps("margin", "correlation", "within which a difference is none"),
        count("n_features", "features", "that enter"),
        text("note", "what must be said next to the number", nullable=True),
    ),
)

SCREENED = Schema(
    "screened",
    1,
    ("sae", "outcome"),
    (
        SAE,
        text("outcome", "a measure"),
        _perhaps("dirtiest", "as outcome", "mean of those that the forecast calls dirtiest"),
        _perhaps("cleanest", "as outcome", "of those that it calls cleanest"),
        _perhaps("difference", "as outcome", "dirtiest minus cleanest, on prompts that neither has seen"),
        _perhaps("lo", "as outcome", "95 % interval, two-way jackknife over features and prompts"),
        _perhaps("hi", "as outcome", "upper end"),
        _perhaps("p", "probability", "that there is no difference"),
        _perhaps("on_difference", "nats", "left in on-target effect after matching"),
        count("n_pairs", "features", "of each side"),
        count("n_prompts", "prompts", "that enter"),
    ),
)

REPAIRS = Schema(
    "repairs",
    1,
    ("direction", "measure"),
    (
        DIRECTION,
        text("measure", "a measure, or `protected`: root mean square change of the protected sets"),
        _perhaps("before", "as the measure", "on the confirm prompts"),
        _perhaps("after", "as the measure", "the repaired direction at the same dose"),
        _perhaps("difference", "as the measure", "after minus before, prompt by prompt"),
        _perhaps("lo", "as the measure", "95 % interval, jackknife over prompts"),
        _perhaps("hi", "as the measure", "upper end"),
        number("cosine", "cosine", "of the two directions"),
        count("n_protected", "sets", "that are protected"),
    ),
)
