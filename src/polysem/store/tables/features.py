"""Features: what they fire on and write, their glosses, contexts and clusters."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import FEATURE, FLOATS, INTS, SAE, STRINGS

FEATURES = Schema(
    "features",
    1,
    ("sae", "feature"),
    (
        SAE,
        FEATURE,
        Column("site", pa.string(), "", "hook point whose activations the SAE reads and writes"),
        Column(
            "density", pa.float64(), "fraction of tokens", "how often the feature is active", nullable=True
        ),
        Column("n_active", pa.int64(), "tokens", "tokens of the corpus on which it is active", nullable=True),
        Column("max_act", pa.float32(), "activation", "largest activation seen", nullable=True),
        Column("tokens_in", INTS, "token ids", "tokens with activation >= ratio x max_act, best first"),
        Column("tokens_in_str", STRINGS, "", "the same as text"),
        Column("tokens_in_act", FLOATS, "activation", "their largest activations"),
        Column(
            "tokens_out",
            INTS,
            "token ids",
            "tokens with the largest W_U d (direct logit effect), best first",
        ),
        Column("tokens_out_str", STRINGS, "", "the same as text"),
        Column("tokens_out_logit", FLOATS, "logits per unit decoder", "their values of W_U d"),
        Column("tokens_bottom_str", STRINGS, "", "tokens with the most negative W_U d"),
        Column("dec_norm", pa.float32(), "activation", "norm of the decoder row"),
        Column(
            "neuron_alignment", INTS, "coordinate", "coordinates with the 3 largest positive decoder entries"
        ),
        Column("neuron_alignment_values", FLOATS, "activation", "those entries of the raw decoder row"),
        Column("gloss", pa.string(), "", "primary gloss", nullable=True),
        Column("gloss_source", pa.string(), "", "where the primary gloss comes from", nullable=True),
        Column("n_glosses", pa.int32(), "glosses", "how many glosses the feature has"),
    ),
)

GLOSSES = Schema(
    "glosses",
    1,
    ("sae", "feature", "gloss_index"),
    (
        SAE,
        FEATURE,
        Column("gloss_index", pa.int32(), "", "0 is the primary gloss"),
        Column("text", pa.string(), "", "the gloss as published or made"),
        Column("source", pa.string(), "", "file, export or method"),
        Column("explainer", pa.string(), "", "model or method that wrote it", nullable=True),
    ),
)

CONTEXTS = Schema(
    "contexts",
    1,
    ("sae", "feature", "rank"),
    (
        SAE,
        FEATURE,
        Column("rank", pa.int32(), "", "0 is the context with the largest activation"),
        Column("max_value", pa.float32(), "activation", "largest activation in the window"),
        Column("position", pa.int32(), "", "index of that token in `tokens`"),
        Column("token_ids", INTS, "token ids", "the window; empty where the source gives only strings"),
        Column("tokens", STRINGS, "", "the window as token strings"),
        Column("values", FLOATS, "activation", "activation of the feature on each token"),
        Column("source", pa.string(), "", "document and offset, or the export's row id"),
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
            "similarity_cut",
            pa.float64(),
            "cosine",
            "clusters merge above this gloss similarity (average linkage)",
        ),
        Column("cluster", pa.int32(), "", "cluster number inside the SAE, by smallest member"),
    ),
)
