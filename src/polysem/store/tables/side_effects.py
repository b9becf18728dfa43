"""Side effects of directions: tables of `polysem side-effects`."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c

DIRECTION = c.text("direction", "name of the direction")
_ENDS = c.interval("as value", "the 95 % interval, jackknife over prompts")

DIRECTIONS = c.table("directions", 1, "direction")(
    DIRECTION,
    c.text("kind", "feature | texts | models | file | given (a tensor) | repaired"),
    c.text("site", "hook point that is steered"),
    c.text("sae", "dictionary of a feature", nullable=True),
    c.index("feature", "row of W_dec of a feature", nullable=True),
    c.text("gloss", "of a feature", nullable=True),
    Column("tokens", c.STRINGS, "", "what it is meant to move"),
    c.text("tokens_from", "who said so: feature | asked | direct (what it writes through W_U by itself)"),
    c.text("positions", "which positions are steered"),
    c.text("dose_unit", "kl (nats) | coefficient (times the vector as given)"),
    c.number("dose", "dose_unit", "what was asked for"),
    c.number("length", "activation", "of the vector as given"),
    c.perhaps("coefficient", "times the vector", "mean over prompts of what was added"),
    c.text("readout", "dictionary whose features were looked at", nullable=True),
    c.perhaps("threshold", "activation", "beyond which one of its features counts as moved"),
    c.perhaps("percentile", "fraction", "features of the site's dictionary that are less clean, each on its own tokens, by gradient"),
    c.count("n_prompts", "prompts", "of both halves"),
    c.count("n_reached", "prompts", "on which the dose was reached"),
    c.count("n_null", "directions", "isotropic ones pushed at the same KL"),
)  # fmt: skip

SIDE_EFFECTS = c.table("side_effects", 1, "direction", "measure")(
    DIRECTION,
    c.text("measure", "as in the closed choices"),
    c.perhaps("value", "as the measure", "on the confirm prompts"),
    *_ENDS,
    c.perhaps("forecast", "as value", "by the gradients of the select prompts, no push"),
    c.perhaps("null", "as value", "median over isotropic pushes"),
    c.perhaps("null_lo", "as value", "their 5 % quantile"),
    c.perhaps("null_hi", "as value", "their 95 % quantile"),
    c.perhaps("p", "probability", "two-sided, by rank among isotropic pushes"),
    c.count("n_prompts", "prompts", "confirm prompts on which the dose was reached"),
    c.count("n_null", "directions", "isotropic pushes with a number"),
)

SIDE_EFFECTS_MOVED = c.table("side_effects_moved", 1, "direction", "kind", "rank")(
    DIRECTION,
    c.text("kind", "tokens (a feature's) | category (of words) | feature (of the readout)"),
    c.index("rank", "0 moved most on the select prompts"),
    c.index("place", "feature number, or place of the category"),
    c.text("name", "feature and first tokens, category, or feature and gloss"),
    c.number("selected", "as value", "mean on the select prompts, by which it was chosen"),
    c.number("value", "nats; of features activation", "mean on the confirm prompts"),
    *_ENDS,
    c.perhaps("forecast", "as value", "by the gradients of the select prompts"),
    c.perhaps("null_hi", "as value", "95 % quantile of the size under isotropic pushes"),
    c.flag("beyond", "whether its interval excludes 0 and it moved more than that quantile"),
    c.count("n_prompts", "prompts", "that enter"),
)

SIDE_EFFECTS_LINEAR = c.table("side_effects_linear", 1, "sae", "feature")(
    *(c.SAE, c.FEATURE),
    c.perhaps("on_target", "nats", "at the dose, by gradient"),
    c.perhaps("cleanliness", "nats per root nat", "on target / sqrt(2 KL)"),
    c.perhaps("percentile", "fraction", "of the features with a number that are less clean"),
    c.perhaps("kl", "nats per squared activation", "of a unit push"),
    c.perhaps("stability", "cosine", "of the change of logits with its mean"),
    c.perhaps("reach_sets", "sets", "participation ratio of token sets"),
    c.count("n_prompts", "prompts", "that gradients are averaged over"),
)

CLEANER = c.table("cleaner", 1, "direction", "rank")(
    DIRECTION,
    c.index("rank", "0 is the cleanest, by gradient"),
    *(c.SAE, c.FEATURE),
    c.text("gloss", "of the feature", nullable=True),
    c.number("cleanliness", "nats per root nat", "of the feature on the direction's tokens, either way"),
    c.number("reach_sets", "sets", "participation ratio of token sets"),
    c.number("cosine", "cosine", "with the direction"),
)

FORECASTS = c.table("forecasts", 1, "sae", "outcome", "predictors")(
    c.SAE,
    c.text("outcome", "a measure"),
    c.text("predictors", "which: all, weights, one baseline, or a difference of two"),
    c.perhaps("spearman", "correlation", "held out by feature; of a difference the difference"),
    *c.interval("correlation", "the 95 % interval, jackknife over features"),
    c.perhaps("reliability", "correlation", "of the outcome: two halves of its prompts, Spearman-Brown"),
    c.perhaps("ceiling", "correlation", "its root: what a forecast without error would have"),
    c.perhaps("p", "probability", "labels permuted within density deciles, or that a difference is none"),
    c.perhaps("p_equivalent", "probability", "that a partial correlation lies beyond the margin"),
    c.perhaps("margin", "correlation", "within which a difference is none"),
    c.count("n_features", "features", "that enter"),
    c.text("note", "what must be said next to the number", nullable=True),
)

SCREENED = c.table("screened", 1, "sae", "outcome")(
    c.SAE,
    c.text("outcome", "a measure"),
    c.perhaps("dirtiest", "as outcome", "mean of those that the forecast calls dirtiest"),
    c.perhaps("cleanest", "as outcome", "of those that it calls cleanest"),
    c.perhaps("difference", "as outcome", "dirtiest minus cleanest, on prompts that neither has seen"),
    *c.interval("as outcome", "the 95 % interval, two-way jackknife over features and prompts"),
    c.perhaps("p", "probability", "that there is no difference"),
    c.perhaps("on_difference", "nats", "left in on-target effect after matching"),
    c.count("n_pairs", "features", "of each side"),
    c.count("n_prompts", "prompts", "that enter"),
)

REPAIRS = c.table("repairs", 1, "direction", "measure")(
    DIRECTION,
    c.text("measure", "a measure, or `protected`: root mean square change of the protected sets"),
    c.perhaps("before", "as the measure", "on the confirm prompts"),
    c.perhaps("after", "as the measure", "the repaired direction at the same dose"),
    c.perhaps("difference", "as the measure", "after minus before, prompt by prompt"),
    *c.interval("as the measure", "the 95 % interval, jackknife over prompts"),
    c.number("cosine", "cosine", "of the two directions"),
    c.count("n_protected", "sets", "that are protected"),
)
