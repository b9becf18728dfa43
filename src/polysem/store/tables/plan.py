"""What is to be run, on which prompts, and what controls were chosen from."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import INTS, SAE, TRIAL

PLAN = Schema(
    "plan",
    1,
    ("trial_id",),
    (
        TRIAL,
        SAE,
        Column("site", pa.string(), "", "hook point that is edited"),
        Column("locus", pa.string(), "", "feature | clamp | gradient | prompt | neuron | mlp_neuron"),
        Column(
            "relation",
            pa.string(),
            "",
            "pair | split_pair (one concept twice) | self | the controls of interventions/controls.py | rotated",
        ),
        Column("target", pa.int32(), "", "feature whose token set is read out"),
        Column(
            "source",
            pa.int32(),
            "",
            "feature whose direction is pushed; neurons count on from d_sae; null for random directions",
            nullable=True,
        ),
        Column("draw", pa.int32(), "", "number of the draw of a random control; 0 otherwise"),
        Column(
            "recipe",
            pa.string(),
            "",
            "how the push is made at run time: canonical JSON, see interventions/base.py",
        ),
        Column("interference_bin", pa.int8(), "", "bin of the pair; -1 for controls"),
        Column(
            "interference",
            pa.float64(),
            "cosine",
            "cosine of the pushed direction with the target's; null where it is known at run time only (trials.alignment)",
            nullable=True,
        ),
        Column("similarity", pa.float64(), "cosine", "gloss similarity of source and target", nullable=True),
        Column("prompt_id", pa.string(), "", "key of prompts"),
        Column("token_set", pa.string(), "", "in | out: which target tokens are read"),
        Column("dose", pa.float64(), "dose_unit", "signed strength"),
        Column(
            "dose_unit",
            pa.string(),
            "",
            "kl (nats, what the push does) | resid_norm (mean norm of the site's activations on the prompt) | "
            "absolute | factor (neurons: relative change) | injection (prompt: 1 the snippet, -1 its match) | max_act "
            "(clamp) | paper_scale, paper_factor, paper_injection: strengths of the paper's preset",
        ),
        Column("positions", pa.string(), "", "last | all | all_but_first"),
        Column("split", pa.string(), "", "select | confirm"),
        Column("block", pa.string(), "", "randomisation block: SAE and target"),
        Column("batch", pa.int32(), "", "trials of one batch run together"),
    ),
)

PROMPTS = Schema(
    "prompts",
    1,
    ("prompt_id",),
    (
        Column("prompt_id", pa.string(), "", "hash of the text"),
        Column("text", pa.string(), "", "the prompt"),
        Column("token_ids", INTS, "token ids", "as given to the model, BOS included where used"),
        Column("source", pa.string(), "", "template, file and line, or document and offset"),
        Column("split", pa.string(), "", "select | confirm"),
    ),
)

SIGNALS = Schema(
    "signals",
    1,
    ("sae", "target", "source"),
    (
        SAE,
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("interference", pa.float64(), "cosine", ""),
        Column("firing", pa.float64(), "Jaccard", "of the tokens on which the two fire", nullable=True),
        Column(
            "switch_source",
            pa.float64(),
            "fraction",
            "of contexts without the target in which writing the source switches it on",
            nullable=True,
        ),
        Column("switch_target", pa.float64(), "fraction", "the other way round", nullable=True),
        Column("tokens", pa.float64(), "Jaccard", "of their top tokens", nullable=True),
        Column("flagged", pa.bool_(), "", "one concept twice, by any of the four"),
        Column(
            "similarity_2", pa.float64(), "cosine", "gloss similarity by the second measure", nullable=True
        ),
        Column("measure_2", pa.string(), "", "what the second measure is; '' for none"),
    ),
)

NEURONS = Schema(
    "neurons",
    1,
    ("sae", "kind", "neuron"),
    (
        SAE,
        Column("kind", pa.string(), "", "coordinate (of the SAE's site) | mlp (of the layer's MLP)"),
        Column("neuron", pa.int32(), "", "number of the coordinate or neuron"),
        Column("degree", pa.int64(), "clusters", "gloss clusters of the features that it is tied to"),
        Column(
            "n_features", pa.int64(), "features", "tied to it: among their 3 most aligned, cosine above 0.2"
        ),
        Column("variance", pa.float64(), "activation^2", "of its activation on the study's prompts"),
        Column("write_norm", pa.float64(), "activation", "length of what one unit of it adds to the site"),
        Column("logit_norm", pa.float64(), "logits", "length of that times W_U"),
    ),
)

NEURON_DEGREES = Schema(
    "neuron_degrees",
    1,
    ("sae", "kind", "quantity"),
    (
        SAE,
        Column("kind", pa.string(), "", "coordinate | mlp"),
        Column("quantity", pa.string(), "", "see interventions/degrees.py"),
        Column(
            "value",
            pa.float64(),
            "",
            "of the model's own neurons; null where it does not vary",
            nullable=True,
        ),
        Column("null_mean", pa.float64(), "", "mean over randomly rotated bases", nullable=True),
        Column("null_lo", pa.float64(), "", "smallest of them", nullable=True),
        Column("null_hi", pa.float64(), "", "largest of them", nullable=True),
        Column("p", pa.float64(), "probability", "two-sided, of the value among them", nullable=True),
        Column("n_rotations", pa.int64(), "rotations", ""),
    ),
)
