"""Features: what they fire on and write, their glosses, contexts and clusters."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import F32, F64, FEATURE, FLOATS, I32, I64, INTS, SAE, STRING, STRINGS

FEATURES = Schema(
    "features",
    1,
    ("sae", "feature"),
    (
        SAE,
        FEATURE,
        Column("site", STRING, "", "hook point whose activations the dictionary reads"),
        Column("density", F64, "fraction of tokens", "how often the feature is active", nullable=True),
        Column("n_active", I64, "tokens", "tokens of the corpus on which it is active", nullable=True),
        Column("max_act", F32, "activation", "largest activation seen", nullable=True),
        Column("tokens_in", INTS, "token ids", "tokens with activation >= ratio x max_act, best first"),
        Column("tokens_in_str", STRINGS, "", "the same as text"),
        Column("tokens_in_act", FLOATS, "activation", "their largest activations"),
        Column(
            "tokens_out",
            INTS,
            "token ids",
            "tokens with the largest W_U d (direct logit effect), or that steering raises most (features.tokens_out), best first",
        ),
        Column("tokens_out_str", STRINGS, "", "the same as text"),
        Column(
            "tokens_out_logit",
            FLOATS,
            "logits per unit decoder",
            "their values of W_U d, or change in log-probability",
        ),
        Column("tokens_bottom_str", STRINGS, "", "tokens with the most negative W_U d"),
        Column("dec_norm", F32, "activation", "norm of the decoder row"),
        Column(
            "neuron_alignment", INTS, "coordinate", "coordinates with the 3 largest positive decoder entries"
        ),
        Column("neuron_alignment_values", FLOATS, "activation", "those entries of the raw decoder row"),
        Column("gloss", STRING, "", "primary gloss", nullable=True),
        Column("gloss_source", STRING, "", "where the primary gloss comes from", nullable=True),
        Column("n_glosses", I32, "glosses", "how many glosses the feature has"),
    ),
)

GLOSSES = Schema(
    "glosses",
    1,
    ("sae", "feature", "gloss_index"),
    (
        SAE,
        FEATURE,
        Column("gloss_index", I32, "", "0 is the primary gloss"),
        Column("text", STRING, "", "the gloss as published or made"),
        Column("source", STRING, "", "file, export or method"),
        Column("explainer", STRING, "", "model or method that wrote it", nullable=True),
    ),
)

CONTEXTS = Schema(
    "contexts",
    1,
    ("sae", "feature", "rank"),
    (
        SAE,
        FEATURE,
        Column("rank", I32, "", "0 is the context with the largest activation"),
        Column("max_value", F32, "activation", "largest activation in the window"),
        Column("position", I32, "", "index of that token in `tokens`"),
        Column("token_ids", INTS, "token ids", "the window; empty where the source gives only strings"),
        Column("tokens", STRINGS, "", "the window as token strings"),
        Column("values", FLOATS, "activation", "activation of the feature on each token"),
        Column("source", STRING, "", "document and offset, or the export's row id"),
    ),
)

CLUSTERS = Schema(
    "clusters",
    1,
    ("sae", "feature", "similarity_cut"),
    (
        SAE,
        FEATURE,
        Column(
            "similarity_cut", F64, "cosine", "clusters merge above this gloss similarity (average linkage)"
        ),
        Column("cluster", I32, "", "cluster number inside the SAE, by smallest member"),
    ),
)
