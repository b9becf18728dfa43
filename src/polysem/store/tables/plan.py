"""What is to be run, on which prompts, and what controls were chosen from."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c
from polysem.vocabulary import COVARIATES as WORDS
from polysem.vocabulary import DOSE_UNITS, LOCI, RELATIONS, TOKEN_SETS
from polysem.vocabulary import SIMILARITIES as SIMILARITY_NAMES

PLAN = c.table("plan", 4, "trial_id")(
    *(c.TRIAL, c.SAE),
    c.text("site", "hook point that is edited"),
    c.text("locus", " | ".join(LOCI)),
    c.text("relation", "what the source is to the target: " + " | ".join(RELATIONS)),
    c.index("target", "feature whose token set is read out"),
    c.index(
        "source",
        "feature whose direction is steered; neurons, and vectors of one's own, count on from d_sae; null for random directions",
        nullable=True,
    ),
    c.text(
        "source_sae",
        "dictionary of the source, or the name of a vector, whose site is edited; null where source is",
        nullable=True,
    ),
    c.index("draw", "number of the draw of a random control; 0 otherwise"),
    c.index(
        "pair_target",
        "of a control that was drawn for one pair or neuron: that pair's target; null for all else",
        nullable=True,
    ),
    c.index("pair_source", "... and that pair's source", nullable=True),
    c.text("recipe", "how the row is steered at run time: canonical JSON, see act/base.py"),
    c.small("interference_bin", "bin of the pair; -1 for controls"),
    c.perhaps(
        "interference",
        "cosine",
        "cosine of the steered direction with the target's; null where it is known at run time only (trials.alignment)",
    ),
    c.perhaps("similarity", "cosine", "gloss similarity of source and target"),
    c.text("prompt_id", "key of prompts"),
    c.text("token_set", " | ".join(TOKEN_SETS) + ": which target tokens are read"),
    Column(
        "reads",
        c.INTS,
        "token ids",
        "tokens that are read in place of the target's own; null where its own are",
        nullable=True,
    ),
    c.number("dose", "dose_unit", "signed strength"),
    c.text("dose_unit", " | ".join(f"{name} ({unit.help})" for name, unit in DOSE_UNITS.items())),
    c.text("positions", "last | all | all_but_first"),
    c.text("split", "select | confirm"),
    c.text("block", "randomisation block: SAE and target"),
    c.index("batch", "trials of one batch run together"),
)

PROMPTS = c.table("prompts", 1, "prompt_id")(
    c.text("prompt_id", "hash of the text"),
    c.text("text", "the prompt"),
    Column("token_ids", c.INTS, "token ids", "as given to the model, BOS included where used"),
    c.text("source", "template, file and line, or document and offset"),
    c.text("split", "select | confirm"),
)

SIGNALS = c.table("signals", 2, "sae", "target", "source")(
    *c.PAIR,
    c.number("interference", "cosine", "of the two decoder rows, float64"),
    c.perhaps("firing", "Jaccard", "of the tokens on which the two fire"),
    c.perhaps(
        "switch_source",
        "fraction",
        "of contexts without the target in which writing the source switches it on",
    ),
    c.perhaps("switch_target", "fraction", "the other way round"),
    c.perhaps("tokens", "Jaccard", "of their top tokens"),
    c.flag("flagged", "one concept twice, by any of the four"),
)

SIMILARITIES = c.table("similarities", 1, "sae", "target", "source", "measure")(
    c.SAE,
    c.index("target", "feature; of a random pair, one of the two"),
    c.index("source", "feature, of the same SAE; of a random pair, the other"),
    c.text("measure", "as in glosses.similarity: " + " | ".join(SIMILARITY_NAMES)),
    c.small("place", "0: the study's own gloss similarity; 1, 2, …: as the study names them"),
    c.flag("random", "a pair drawn at random from all glossed features, not a planned one"),
    c.perhaps("value", "as the measure", "similarity of the two; null if not known"),
    c.perhaps("half_1", "as the measure", "by one half of what is measured"),
    c.perhaps("half_2", "as the measure", "by the other half"),
    c.perhaps(
        "limit",
        "as the measure",
        "above it a pair is related: at the quantile of random pairs at which gloss similarity is pairs.max_similarity; "
        "null of covariates",
    ),
    c.text("split", "what the halves are: glosses (two) | halves (of one) | '' (none)"),
    c.text("made_by", "model, database and package"),
)

CONCEPTS = c.table("concepts", 1, "sae", "feature")(
    c.SAE,
    c.index("feature", "of a planned pair, or drawn at random"),
    Column("n_contexts", c.I32, "contexts", "distinct snippets that were grouped"),
    Column("k", c.I8, "concepts", "groups of contexts; 1 where none beats contexts without groups"),
    Column("sizes", c.INTS, "contexts", "of every concept, the largest first"),
    Column("examples", c.STRINGS, "", "of every concept, its most active context"),
    c.perhaps("silhouette", "", "of the best grouping into 2 to 5"),
    c.perhaps("limit", "", "98 % of what contexts without groups give"),
    c.number("score", "1 - cosine", "polysemanticity: 1 - mean cosine between concepts"),
    c.index("mixed_with", "the feature nearest in density among those read", nullable=True),
    Column("mixed_k", c.I8, "concepts", "of as many contexts, half of them of that one", nullable=True),
    c.perhaps("mixed", "1 - cosine", "their score: two features in one"),
)

SENSES = c.table("senses", 1, "sae", "target", "source")(
    *c.PAIR,
    c.number("main", "cosine", "between their largest concepts"),
    c.number("highest", "cosine", "between the nearest two concepts: how related they are"),
    c.number("lowest", "cosine", "between the furthest two"),
    c.perhaps("limit", "cosine", "above which a pair counts as related"),
    c.small("concept_target", "which concept of the target is the nearest; 0 is the largest"),
    c.small("concept_source", "... and which of the source"),
    c.flag("second_sense", "related by concepts of which one at least is not the largest, and only by those"),
)

COVARIATES = c.table("covariates", 1, "sae", "target", "source", "token_set")(
    *c.PAIR,
    c.text("token_set", " | ".join(TOKEN_SETS)),
    *(
        c.perhaps(word.name, unit, f"{word.help}; null where not known")
        for word, unit in zip(WORDS.values(), ("logits", "share", "log10"), strict=True)
    ),
)

NEURONS = c.table("neurons", 2, "sae", "kind", "basis", "neuron")(
    c.SAE,
    c.text("kind", "coordinate (of the SAE's site) | mlp (of the layer's MLP)"),
    c.index("basis", "0: the model's own; 1: one rotated at random"),
    c.index("neuron", "number of the coordinate or neuron, or of the rotated basis's direction"),
    c.count("degree", "clusters", "gloss clusters of the features that it is tied to"),
    c.count("n_features", "features", "tied to it: among their 3 most aligned, cosine above 0.2"),
    c.number("variance", "activation^2", "of its activation on the study's prompts"),
    c.number("mean", "activation", "mean of its activation on the study's prompts"),
    c.number("write_norm", "activation", "length of what one unit of it adds to the site"),
    c.number("logit_norm", "logits", "length of that times W_U"),
)

NEURON_DEGREES = c.table("neuron_degrees", 1, "sae", "kind", "quantity")(
    c.SAE,
    c.text("kind", "coordinate | mlp"),
    c.text("quantity", "see plan/degrees.py"),
    c.perhaps("value", "", "of the model's own neurons; null where it does not vary"),
    c.perhaps("null_mean", "", "mean over randomly rotated bases"),
    c.perhaps("null_lo", "", "smallest of them"),
    c.perhaps("null_hi", "", "largest of them"),
    c.perhaps("p", "probability", "two-sided, of the value among them"),
    c.count("n_rotations", "rotations", "rotated bases that were tried"),
)
