"""What the model's gradient says about the planned pushes."""

from polysem.store.tables import columns as c

RESPONSE = c.table(
    "response", 1, "sae", "locus", "relation", "target", "source", "draw", "token_set", "dose"
)(
    *(c.SAE, c.LOCUS),
    c.text("relation", "pair | self | random_feature"),
    *(c.TARGET, c.SOURCE, c.DRAW, c.TOKENS),
    c.number("dose", "dose_unit", "absolute value, as in plan"),
    c.number("linear", "nats", "linear response: gradient . push, mean over the prompts of pair_effects"),
    c.perhaps(
        "linear_direct", "nats", "its part that passes no further block; null where there is no direct path"
    ),
    c.N_PROMPTS,
)

DECOMPOSITION = c.table("decomposition", 2, "sae", "target", "source", "token_set")(
    *(c.SAE, c.TARGET, c.SOURCE, c.TOKENS, c.DOSE),
    c.perhaps(
        "total",
        "nats",
        "odd change in log-odds; shared + common + own = direct + indirect = mediated + remainder",
    ),
    c.perhaps("shared", "nats", "of the part of the push along the target's direction: interference proper"),
    c.perhaps("common", "nats", "of the part along what all directions share"),
    c.perhaps("own", "nats", "of the rest: the source's own route"),
    c.perhaps("interaction", "nats", "total minus the three parts taken alone"),
    c.perhaps("direct", "nats", "without any further block; null where there is no direct path"),
    c.perhaps("indirect", "nats", "through further blocks"),
    c.perhaps("mediated", "nats", "of the target's own latent, moved as the encoder reads the push"),
    c.perhaps("remainder", "nats", "total minus mediated"),
    c.perhaps(
        "clean",
        "nats",
        "total on the target tokens that resemble none of the source's (cosine of embeddings below 0.5); null if none is left",
    ),
    c.N_PROMPTS,
)

METRICS = c.table("metrics", 1, "sae", "target", "source", "metric")(
    *(c.SAE, c.TARGET, c.SOURCE),
    c.text("metric", "see linear/metrics.py"),
    c.number("value", "", "in the metric's own unit"),
)

COMPENSATION = c.table("compensation", 1, "sae", "token_set", "band_lo", "band_hi")(
    *(c.SAE, c.TOKENS),
    c.number("band_lo", "cosine", "pairs with |interference| from here"),
    c.number("band_hi", "cosine", "to here"),
    c.perhaps("estimate", "", "lambda: 0 = interference propagates in full, 1 = the readout cancels it"),
    *c.interval(""),
    c.LEVEL,
    c.number("floor", "cosine", "crosstalk that no readout of so many features can go below"),
    c.number("rms_cosine", "cosine", "root mean square interference of the pairs"),
    *(c.N_TARGETS, c.N_SOURCES, c.N_PAIRS),
    c.text("note", "why there is no estimate", nullable=True),
)

GRADIENT_PATH = c.table("gradient_path", 1, "sae", "locus", "token_set", "dose", "target", "source")(
    *(c.SAE, c.LOCUS, c.TOKENS, c.DOSE, c.TARGET, c.SOURCE),
    c.number("total", "nats", "measured odd change in log-odds, mean over the prompts"),
    c.number("linear", "nats", "gradient at the prompt . push"),
    c.number("path", "nats", "gradient averaged from -push to +push . push"),
    c.count("n_prompts", "prompts", "confirm prompts sampled"),
)
"""A sample of pairs: what the gradient says at the prompt, and averaged along the push."""

GRADIENT_MATRIX = c.table("gradient_matrix", 2, "sae", "token_set", "target", "source")(
    *(c.SAE, c.TOKENS, c.TARGET, c.SOURCE),
    c.number("interference", "cosine", "cosine of the two directions"),
    c.number("linear", "nats per unit", "gradient of the target . unit direction of the source"),
    c.perhaps(
        "linear_direct",
        "nats per unit",
        "its part that passes no further block; null where there is no direct path",
    ),
)
"""Targets x features, neither chosen by interference: what permutation tests need."""

REPLICATED = c.table("replicated", 3, "sae", "other", "token_set", "target", "source")(
    c.SAE,
    c.text("other", "SAE of the same site"),
    c.text("token_set", "in | out; every SAE's own tokens"),
    c.index("target", "in `sae`"),
    c.index("source", "in `sae`"),
    c.index("other_target", "its match in `other`"),
    c.index("other_source", "its match in `other`"),
    c.number("linear", "nats per unit", "linear response in `sae`"),
    c.number("other_linear", "nats per unit", "the same pair's in `other`"),
    c.perhaps("steered", "nats", "its odd change under real steering, at 0.1 nats of KL"),
    c.perhaps("other_steered", "nats", "the same pair's in `other`"),
    c.number("dealt_linear", "nats per unit", "as other_linear, were matches alike by their cosine alone"),
    c.perhaps("dealt_steered", "nats", "as other_steered, were matches alike by their cosine alone"),
    c.flag("stable_target", "whether the target's match is stable"),
    c.flag("stable_source", "whether the source's match is stable"),
    c.flag("shared", "whether both members have a match of cosine 0.7"),
    c.count("n_steered", "prompts", "on which both signs reached the KL, in the SAE that has fewer"),
    c.number("matched", "share", "of the features of `sae` that have a match in `other`"),
    c.number("best_cosine", "cosine", "mean over them of the best one in `other`"),
    c.N_PROMPTS,
)
