"""Features: what they fire on and write, their glosses, contexts and clusters."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c

FEATURES = c.table("features", 1, "sae", "feature")(
    *(c.SAE, c.FEATURE),
    c.text("site", "hook point whose activations the dictionary reads"),
    c.perhaps("density", "fraction of tokens", "how often the feature is active"),
    c.count("n_active", "tokens", "tokens of the corpus on which it is active", nullable=True),
    Column("max_act", c.F32, "activation", "largest activation seen", nullable=True),
    Column("tokens_in", c.INTS, "token ids", "tokens with activation >= ratio x max_act, best first"),
    Column("tokens_in_str", c.STRINGS, "", "the same as text"),
    Column("tokens_in_act", c.FLOATS, "activation", "their largest activations"),
    Column(
        "tokens_out",
        c.INTS,
        "token ids",
        "tokens with the largest W_U d (direct logit effect), or that steering raises most (features.tokens_out), best first",
    ),
    Column("tokens_out_str", c.STRINGS, "", "the same as text"),
    Column(
        "tokens_out_logit",
        c.FLOATS,
        "logits per unit decoder",
        "their values of W_U d, or change in log-probability",
    ),
    Column("tokens_bottom_str", c.STRINGS, "", "tokens with the most negative W_U d"),
    Column("dec_norm", c.F32, "activation", "norm of the decoder row"),
    Column(
        "neuron_alignment", c.INTS, "coordinate", "coordinates with the 3 largest positive decoder entries"
    ),
    Column("neuron_alignment_values", c.FLOATS, "activation", "those entries of the raw decoder row"),
    c.text("gloss", "primary gloss", nullable=True),
    c.text("gloss_source", "where the primary gloss comes from", nullable=True),
    Column("n_glosses", c.I32, "glosses", "how many glosses the feature has"),
)

GLOSSES = c.table("glosses", 1, "sae", "feature", "gloss_index")(
    *(c.SAE, c.FEATURE),
    c.index("gloss_index", "0 is the primary gloss"),
    c.text("text", "the gloss as published or made"),
    c.text("source", "file, export or method"),
    c.text("explainer", "model or method that wrote it", nullable=True),
)

CONTEXTS = c.table("contexts", 1, "sae", "feature", "rank")(
    *(c.SAE, c.FEATURE),
    c.index("rank", "0 is the context with the largest activation"),
    Column("max_value", c.F32, "activation", "largest activation in the window"),
    c.index("position", "index of that token in `tokens`"),
    Column("token_ids", c.INTS, "token ids", "the window; empty where the source gives only strings"),
    Column("tokens", c.STRINGS, "", "the window as token strings"),
    Column("values", c.FLOATS, "activation", "activation of the feature on each token"),
    c.text("source", "document and offset, or the export's row id"),
)

CLUSTERS = c.table("clusters", 1, "sae", "feature", "similarity_cut")(
    *(c.SAE, c.FEATURE),
    c.number("similarity_cut", "cosine", "clusters merge above this gloss similarity (average linkage)"),
    c.index("cluster", "cluster number inside the SAE, by smallest member"),
)
