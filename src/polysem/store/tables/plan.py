"""What is to be run, on which prompts, and what controls were chosen from."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import INTS, SAE, TRIAL
from polysem.vocabulary import COVARIATES as WORDS
from polysem.vocabulary import DOSE_UNITS, LOCI, RELATIONS, TOKEN_SETS
from polysem.vocabulary import SIMILARITIES as SIMILARITY_NAMES

PLAN = Schema(
    "plan",
    4,
    ("trial_id",),
    (
        TRIAL,
        SAE,
        Column("site", pa.string(), "", "hook point that is edited"),
        Column("locus", pa.string(), "", " | ".join(LOCI)),
        Column(
            "relation",
            pa.string(),
            "",
            "what the source is to the target: " + " | ".join(RELATIONS),
        ),
        Column("target", pa.int32(), "", "feature whose token set is read out"),
        Column(
            "source",
            pa.int32(),
            "",
            "feature whose direction is steered; neurons, and vectors of one's own, count on from d_sae; null for random directions",
            nullable=True,
        ),
        Column(
            "source_sae",
            pa.string(),
            "",
            "dictionary of the source, or the name of a vector, whose site is edited; null where source is",
            nullable=True,
        ),
        Column("draw", pa.int32(), "", "number of the draw of a random control; 0 otherwise"),
        Column(
            "pair_target",
            pa.int32(),
            "",
            "of a control that was drawn for one pair or neuron: that pair's target; null for all else",
            nullable=True,
        ),
        Column("pair_source", pa.int32(), "", "... and that pair's source", nullable=True),
        Column(
            "recipe",
            pa.string(),
            "",
            "how the row is steered at run time: canonical JSON, see act/base.py",
        ),
        Column("interference_bin", pa.int8(), "", "bin of the pair; -1 for controls"),
        Column(
            "interference",
            pa.float64(),
            "cosine",
            "cosine of the steered direction with the target's; null where it is known at run time only (trials.alignment)",
            nullable=True,
        ),
        Column("similarity", pa.float64(), "cosine", "gloss similarity of source and target", nullable=True),
        Column("prompt_id", pa.string(), "", "key of prompts"),
        Column("token_set", pa.string(), "", " | ".join(TOKEN_SETS) + ": which target tokens are read"),
        Column(
            "reads",
            INTS,
            "token ids",
            "tokens that are read in place of the target's own; null where its own are",
            nullable=True,
        ),
        Column("dose", pa.float64(), "dose_unit", "signed strength"),
        Column(
            "dose_unit",
            pa.string(),
            "",
            " | ".join(f"{name} ({unit.help})" for name, unit in DOSE_UNITS.items()),
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
    2,
    ("sae", "target", "source"),
    (
        SAE,
        Column("target", pa.int32(), "", "feature"),
        Column("source", pa.int32(), "", "feature, of the same SAE"),
        Column("interference", pa.float64(), "cosine", "of the two decoder rows, float64"),
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
    ),
)

SIMILARITIES = Schema(
    "similarities",
    1,
    ("sae", "target", "source", "measure"),
    (
        SAE,
        Column("target", pa.int32(), "", "feature; of a random pair, one of the two"),
        Column("source", pa.int32(), "", "feature, of the same SAE; of a random pair, the other"),
        Column("measure", pa.string(), "", "as in glosses.similarity: " + " | ".join(SIMILARITY_NAMES)),
        Column(
            "place", pa.int8(), "", "0: the study's own gloss similarity; 1, 2, …: as the study names them"
        ),
        Column(
            "random", pa.bool_(), "", "a pair drawn at random from all glossed features, not a planned one"
        ),
        Column(
            "value", pa.float64(), "as the measure", "similarity of the two; null if not known", nullable=True
        ),
        Column("half_1", pa.float64(), "as the measure", "by one half of what is measured", nullable=True),
        Column("half_2", pa.float64(), "as the measure", "by the other half", nullable=True),
        Column(
            "limit",
            pa.float64(),
            "as the measure",
            "above it a pair is related: at the quantile of random pairs at which gloss similarity is pairs.max_similarity; "
            "null of covariates",
            nullable=True,
        ),
        Column("split", pa.string(), "", "what the halves are: glosses (two) | halves (of one) | '' (none)"),
        Column("made_by", pa.string(), "", "model, database and package"),
    ),
)

CONCEPTS = Schema(
    "concepts",
    1,
    ("sae", "feature"),
    (
        SAE,
        Column("feature", pa.int32(), "", "of a planned pair, or drawn at random"),
        Column("n_contexts", pa.int32(), "contexts", "distinct snippets that were grouped"),
        Column("k", pa.int8(), "concepts", "groups of contexts; 1 where none beats contexts without groups"),
        Column("sizes", INTS, "contexts", "of every concept, the largest first"),
        Column("examples", pa.list_(pa.string()), "", "of every concept, its most active context"),
        Column("silhouette", pa.float64(), "", "of the best grouping into 2 to 5", nullable=True),
        Column("limit", pa.float64(), "", "98 % of what contexts without groups give", nullable=True),
        Column("score", pa.float64(), "1 - cosine", "polysemanticity: 1 - mean cosine between concepts"),
        Column(
            "mixed_with", pa.int32(), "", "the feature nearest in density among those read", nullable=True
        ),
        Column(
            "mixed_k", pa.int8(), "concepts", "of as many contexts, half of them of that one", nullable=True
        ),
        Column("mixed", pa.float64(), "1 - cosine", "their score: two features in one", nullable=True),
    ),
)

SENSES = Schema(
    "senses",
    1,
    ("sae", "target", "source"),
    (
        SAE,
        Column("target", pa.int32(), "", "feature"),
        Column("source", pa.int32(), "", "feature, of the same SAE"),
        Column("main", pa.float64(), "cosine", "between their largest concepts"),
        Column("highest", pa.float64(), "cosine", "between the nearest two concepts: how related they are"),
        Column("lowest", pa.float64(), "cosine", "between the furthest two"),
        Column("limit", pa.float64(), "cosine", "above which a pair counts as related", nullable=True),
        Column(
            "concept_target", pa.int8(), "", "which concept of the target is the nearest; 0 is the largest"
        ),
        Column("concept_source", pa.int8(), "", "... and which of the source"),
        Column(
            "second_sense",
            pa.bool_(),
            "",
            "related by concepts of which one at least is not the largest, and only by those",
        ),
    ),
)

COVARIATES = Schema(
    "covariates",
    1,
    ("sae", "target", "source", "token_set"),
    (
        SAE,
        Column("target", pa.int32(), "", "feature"),
        Column("source", pa.int32(), "", "feature, of the same SAE"),
        Column("token_set", pa.string(), "", " | ".join(TOKEN_SETS)),
        *(
            Column(word.name, pa.float64(), unit, f"{word.help}; null where not known", nullable=True)
            for word, unit in zip(WORDS.values(), ("logits", "share", "log10"), strict=True)
        ),
    ),
)

NEURONS = Schema(
    "neurons",
    2,
    ("sae", "kind", "basis", "neuron"),
    (
        SAE,
        Column("kind", pa.string(), "", "coordinate (of the SAE's site) | mlp (of the layer's MLP)"),
        Column("basis", pa.int32(), "", "0: the model's own; 1: one rotated at random"),
        Column(
            "neuron",
            pa.int32(),
            "",
            "number of the coordinate or neuron, or of the rotated basis's direction",
        ),
        Column("degree", pa.int64(), "clusters", "gloss clusters of the features that it is tied to"),
        Column(
            "n_features", pa.int64(), "features", "tied to it: among their 3 most aligned, cosine above 0.2"
        ),
        Column("variance", pa.float64(), "activation^2", "of its activation on the study's prompts"),
        Column("mean", pa.float64(), "activation", "mean of its activation on the study's prompts"),
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
        Column("quantity", pa.string(), "", "see plan/degrees.py"),
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
        Column("n_rotations", pa.int64(), "rotations", "rotated bases that were tried"),
    ),
)
