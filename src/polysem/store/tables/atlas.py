"""The linear response of all pairs: tables of `polysem atlas`."""

from polysem.store.tables import columns as c

ATLAS_TOP = c.table("atlas_top", 1, "sae", "target", "rank")(
    c.SAE,
    c.index("target", "feature whose token set is read out"),
    c.index("rank", "0 is the source with the largest absolute effect"),
    c.index("source", "feature along whose direction is steered"),
    c.number(
        "effect",
        "nats per resid_norm",
        "predicted change of the target's log-odds per unit of dose, to first order, mean over prompts",
    ),
    c.number("interference", "cosine", "of the two unit decoder rows"),
    c.perhaps("similarity", "cosine", "of the two gloss embeddings"),
)

ATLAS_DENSITY = c.table("atlas_density", 1, "sae", "axis", "cosine_lo", "effect_lo")(
    c.SAE,
    c.text("axis", "interference | similarity: which cosine"),
    c.number("cosine_lo", "cosine", "lower edge of the cell"),
    c.number("cosine_hi", "cosine", "upper edge"),
    c.number("effect_lo", "nats per resid_norm", "lower edge; the end cells hold what is beyond"),
    c.number("effect_hi", "nats per resid_norm", "upper edge"),
    c.count("count", "pairs", "ordered pairs (target, source) in the cell; empty cells are left out"),
)

ATLAS_SAMPLE = c.table("atlas_sample", 1, "sae", "stratum", "target", "source", "prompt_id")(
    c.SAE,
    c.text("stratum", "uniform (over all pairs) | top (over atlas_top)"),
    c.index("target", "as in atlas_top"),
    c.index("source", "as in atlas_top"),
    c.text("prompt_id", "key of prompts"),
    c.number("dose", "resid_norm", "at which the KL is reached"),
    c.number("kl", "nats", "KL(before || after) that was reached"),
    c.number("predicted", "nats", "change of log-odds by the gradient of this prompt at this dose"),
    c.number("measured", "nats", "change of log-odds under real steering"),
)

ATLAS_FIT = c.table("atlas_fit", 1, "sae", "stratum")(
    c.SAE,
    c.text("stratum", "as in atlas_sample"),
    c.perhaps("r2", "", "1 - residual / variance of the measured effects; no refit"),
    *c.interval("", "the 95 % interval, bootstrap over pairs"),
    c.perhaps("slope", "", "measured on predicted, through zero"),
    c.count("n", "interventions", "real trials that reached the KL"),
    c.count("n_asked", "interventions", "real trials that were tried"),
    c.count("n_targets", "features", "targets of the atlas: those whose token set can be read"),
    c.count("n_pairs", "pairs", "ordered pairs (target, source) of the atlas"),
    c.count("n_prompts", "prompts", "that the atlas is averaged over"),
)

ATLAS_TOWARD = c.table("atlas_toward", 1, "sae", "category", "rank")(
    c.SAE,
    c.text("category", "whose words are read"),
    c.index("rank", "0 is the source with the largest effect"),
    c.index("source", "feature along whose direction is steered"),
    c.number(
        "effect",
        "nats per resid_norm",
        "predicted change of the log-odds of the category's words per unit of dose, mean over prompts",
    ),
    c.flag("unrelated", "whether neither its gloss nor a token that activates it names a word of it"),
    c.perhaps(
        "measured",
        "nats",
        "change under real steering at the KL of the atlas, mean over prompts; null where it was not steered",
    ),
    c.count("n_measured", "prompts", "on which it was steered and reached the KL"),
)
