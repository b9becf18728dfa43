"""The tables of a study. Result columns are documented here and nowhere else.

Stage folders hold these tables:

    features/   features, glosses, contexts, clusters; embeddings.safetensors: one [n_features d_embed] tensor
                per SAE, rows in the order of `features`, zero rows where there is no gloss
    pairs/      pairs, density, spectrum, partners
    plan/       plan, prompts
    trials/     trials
    effects/    effects, pair_effects, dose_response, missing
"""

import pyarrow as pa

from polysem.store.schema import Column, Schema

_INTS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_STRINGS = pa.list_(pa.string())

_SAE = Column("sae", pa.string(), "", "label of the SAE in the study")
_FEATURE = Column("feature", pa.int32(), "", "row of W_dec")
_TRIAL = Column("trial_id", pa.string(), "", "hash of the trial's own specification, 16 hex digits")

FEATURES = Schema(
    "features",
    1,
    ("sae", "feature"),
    (
        _SAE,
        _FEATURE,
        Column("site", pa.string(), "", "hook point whose activations the SAE reads and writes"),
        Column(
            "density", pa.float64(), "fraction of tokens", "how often the feature is active", nullable=True
        ),
        Column("n_active", pa.int64(), "tokens", "tokens of the corpus on which it is active", nullable=True),
        Column("max_act", pa.float32(), "activation", "largest activation seen", nullable=True),
        Column("tokens_in", _INTS, "token ids", "tokens with activation >= ratio x max_act, best first"),
        Column("tokens_in_str", _STRINGS, "", "the same as text"),
        Column("tokens_in_act", _FLOATS, "activation", "their largest activations"),
        Column(
            "tokens_out",
            _INTS,
            "token ids",
            "tokens with the largest W_U d (direct logit effect), best first",
        ),
        Column("tokens_out_str", _STRINGS, "", "the same as text"),
        Column("tokens_out_logit", _FLOATS, "logits per unit decoder", "their values of W_U d"),
        Column("tokens_bottom_str", _STRINGS, "", "tokens with the most negative W_U d"),
        Column("dec_norm", pa.float32(), "activation", "norm of the decoder row"),
        Column(
            "neuron_alignment", _INTS, "coordinate", "coordinates with the 3 largest positive decoder entries"
        ),
        Column("neuron_alignment_values", _FLOATS, "activation", "those entries of the raw decoder row"),
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
        _SAE,
        _FEATURE,
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
        _SAE,
        _FEATURE,
        Column("rank", pa.int32(), "", "0 is the context with the largest activation"),
        Column("max_value", pa.float32(), "activation", "largest activation in the window"),
        Column("position", pa.int32(), "", "index of that token in `tokens`"),
        Column("token_ids", _INTS, "token ids", "the window; empty where the source gives only strings"),
        Column("tokens", _STRINGS, "", "the window as token strings"),
        Column("values", _FLOATS, "activation", "activation of the feature on each token"),
        Column("source", pa.string(), "", "document and offset, or the export's row id"),
    ),
)

CLUSTERS = Schema(
    "clusters",
    1,
    ("sae", "feature", "similarity_cut"),
    (
        _SAE,
        _FEATURE,
        Column(
            "similarity_cut",
            pa.float64(),
            "cosine",
            "clusters merge above this gloss similarity (average linkage)",
        ),
        Column("cluster", pa.int32(), "", "cluster number inside the SAE, by smallest member"),
    ),
)

PAIRS = Schema(
    "pairs",
    1,
    ("sae", "i", "j"),
    (
        _SAE,
        Column("i", pa.int32(), "", "first feature, i < j"),
        Column("j", pa.int32(), "", "second feature"),
        Column("interference", pa.float64(), "cosine", "d_i . d_j of unit decoder rows, signed"),
        Column(
            "interference_demeaned",
            pa.float64(),
            "cosine",
            "the same after the mean unit decoder row is removed",
        ),
        Column("row_mean_i", pa.float64(), "cosine", "mean over k of d_i . d_k (k != i)"),
        Column("row_mean_j", pa.float64(), "cosine", "mean over k of d_j . d_k (k != j)"),
        Column(
            "enc_dec_ij",
            pa.float64(),
            "cosine",
            "unit encoder i . unit decoder j: what i reads when j is written",
        ),
        Column("enc_dec_ji", pa.float64(), "cosine", "unit encoder j . unit decoder i"),
        Column("similarity", pa.float64(), "cosine", "cosine of gloss embeddings", nullable=True),
        Column("interference_bin", pa.int8(), "", "index of the interference bin; -1 outside all bins"),
        Column("z_isotropic", pa.float64(), "sd", "interference x sqrt(d_in)"),
        Column(
            "p_isotropic",
            pa.float64(),
            "probability",
            "exact two-sided chance of |cosine| for random unit vectors",
        ),
        Column("z_covariance", pa.float64(), "sd", "interference in SDs of the SAE's own covariance null"),
        Column(
            "p_covariance",
            pa.float64(),
            "probability",
            "two-sided chance under the covariance null (Beta, d_eff)",
        ),
        Column("q_covariance", pa.float64(), "probability", "Benjamini-Hochberg over all pairs of the SAE"),
        Column("token_overlap", pa.float64(), "Jaccard", "overlap of the two sets tokens_in", nullable=True),
        Column(
            "context_overlap",
            pa.float64(),
            "Jaccard",
            "overlap of the positions of the top contexts",
            nullable=True,
        ),
        Column(
            "is_duplicate",
            pa.bool_(),
            "",
            "likely one concept twice: |interference| > 0.7 or token_overlap > 0.2",
        ),
        Column(
            "is_dense", pa.bool_(), "", "either feature fires on more than 10 % or less than 1e-6 of tokens"
        ),
    ),
)

DENSITY = Schema(
    "density",
    1,
    ("sae", "interference_lo", "similarity_lo"),
    (
        _SAE,
        Column("interference_lo", pa.float64(), "cosine", "lower edge of the cell (inclusive)"),
        Column("interference_hi", pa.float64(), "cosine", "upper edge"),
        Column("similarity_lo", pa.float64(), "cosine", "lower edge (inclusive)"),
        Column("similarity_hi", pa.float64(), "cosine", "upper edge"),
        Column(
            "count", pa.int64(), "pairs", "pairs i < j in the cell; all pairs of glossed features are counted"
        ),
    ),
)

SPECTRUM = Schema(
    "spectrum",
    1,
    ("sae", "threshold"),
    (
        _SAE,
        Column(
            "threshold",
            pa.float64(),
            "cosine",
            "pairs with interference above it are counted (below, if negative)",
        ),
        Column("n_pairs", pa.int64(), "pairs", "observed"),
        Column("n_isotropic", pa.float64(), "pairs", "expected for random unit vectors in d_in dimensions"),
        Column("n_covariance", pa.float64(), "pairs", "expected under the SAE's own covariance null"),
        Column("d_in", pa.int32(), "dimensions", "width of the site"),
        Column(
            "d_eff",
            pa.float64(),
            "dimensions",
            "(tr C)^2 / tr C^2 of the unit decoder's covariance about zero",
        ),
        Column("mean_norm", pa.float64(), "cosine", "norm of the mean unit decoder row: the common mode"),
    ),
)

PARTNERS = Schema(
    "partners",
    1,
    ("sae", "feature", "max_similarity", "interference_bin"),
    (
        _SAE,
        _FEATURE,
        Column("max_similarity", pa.float64(), "cosine", "partners have gloss similarity below this"),
        Column("interference_bin", pa.int8(), "", "index of the interference bin"),
        Column("count", pa.int64(), "features", "how many partners, exact, over all pairs"),
    ),
)

PLAN = Schema(
    "plan",
    1,
    ("trial_id",),
    (
        _TRIAL,
        _SAE,
        Column("site", pa.string(), "", "hook point that is edited"),
        Column("locus", pa.string(), "", "feature | gradient | prompt | neuron"),
        Column("relation", pa.string(), "", "pair | self | random_feature | random_direction"),
        Column("target", pa.int32(), "", "feature whose token set is read out"),
        Column(
            "source",
            pa.int32(),
            "",
            "feature whose direction is pushed; null for random directions",
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
            "absolute | resid_norm (mean norm of the site's activations on the prompt)",
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
        Column("token_ids", _INTS, "token ids", "as given to the model, BOS included where used"),
        Column("source", pa.string(), "", "template, file and line, or document and offset"),
        Column("split", pa.string(), "", "select | confirm"),
    ),
)

TRIALS = Schema(
    "trials",
    1,
    ("trial_id",),
    (
        _TRIAL,
        Column("status", pa.string(), "", "ok | skipped | failed"),
        Column("reason", pa.string(), "", "why not ok; a word of trials.REASONS", nullable=True),
        Column("cosine_base", pa.float64(), "cosine", "weighted cosine c before the edit", nullable=True),
        Column("cosine_edit", pa.float64(), "cosine", "weighted cosine c after it", nullable=True),
        Column("mass_base", pa.float64(), "probability", "weighted overlap w = P(T) before", nullable=True),
        Column("mass_edit", pa.float64(), "probability", "weighted overlap w = P(T) after", nullable=True),
        Column("logodds_base", pa.float64(), "nats", "logit of P(T) before", nullable=True),
        Column("logodds_edit", pa.float64(), "nats", "logit of P(T) after", nullable=True),
        Column(
            "kl", pa.float64(), "nats", "KL(before || after) of the next-token distribution", nullable=True
        ),
        Column("top1_kept", pa.bool_(), "", "the most likely next token is unchanged", nullable=True),
        Column(
            "alignment",
            pa.float64(),
            "cosine",
            "realised direction . unit decoder row of the target",
            nullable=True,
        ),
        Column(
            "dose_absolute",
            pa.float64(),
            "activation",
            "signed norm of the vector added at each position",
            nullable=True,
        ),
        Column(
            "resid_norm",
            pa.float64(),
            "activation",
            "mean norm of the site's activations at edited positions",
            nullable=True,
        ),
        Column("dtype", pa.string(), "", "dtype of the forward pass"),
    ),
)

EFFECTS = Schema(
    "effects",
    1,
    ("contrast", "group"),
    (
        Column("contrast", pa.string(), "", "what is estimated"),
        Column("group", pa.string(), "", "for which model, site, metric or dose"),
        Column("estimate", pa.float64(), "unit", "point estimate", nullable=True),
        Column("lo", pa.float64(), "unit", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "unit", "upper end of the interval", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("method", pa.string(), "", "estimator and standard errors"),
        Column("n_trials", pa.int64(), "trials", ""),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("n_targets", pa.int64(), "features", ""),
        Column("n_sources", pa.int64(), "features", ""),
        Column("n_prompts", pa.int64(), "prompts", ""),
        Column("n_missing", pa.int64(), "trials", "planned trials of the contrast without an ok row"),
        Column("p", pa.float64(), "probability", "two-sided", nullable=True),
        Column(
            "p_adj",
            pa.float64(),
            "probability",
            "Holm over declared hypotheses; null where not declared",
            nullable=True,
        ),
        Column("unit", pa.string(), "", "unit of the estimate"),
        Column("note", pa.string(), "", "what must be said next to the number", nullable=True),
    ),
)

PAIR_EFFECTS = Schema(
    "pair_effects",
    1,
    ("sae", "locus", "relation", "target", "source", "draw", "token_set", "dose"),
    (
        _SAE,
        Column("locus", pa.string(), "", "as in plan"),
        Column("relation", pa.string(), "", "as in plan"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", "-1 for a random direction"),
        Column("draw", pa.int32(), "", ""),
        Column("token_set", pa.string(), "", "in | out"),
        Column(
            "dose", pa.float64(), "dose_unit", "absolute value; effects are odd parts over +dose and -dose"
        ),
        Column("interference_bin", pa.int8(), "", "as in plan"),
        Column(
            "interference",
            pa.float64(),
            "cosine",
            "as in plan; realised alignment where the plan knows none",
            nullable=True,
        ),
        Column("similarity", pa.float64(), "cosine", "as in plan", nullable=True),
        Column(
            "logodds", pa.float64(), "nats", "mean over confirm prompts of the odd change in log-odds of T"
        ),
        Column("logodds_se", pa.float64(), "nats", "its standard error over prompts", nullable=True),
        Column("cosine", pa.float64(), "cosine", "mean odd change of c"),
        Column("mass", pa.float64(), "probability", "mean odd change of w"),
        Column("kl", pa.float64(), "nats", "mean KL over both signs"),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)

DOSE_RESPONSE = Schema(
    "dose_response",
    1,
    ("sae", "locus", "relation", "interference_bin", "token_set", "dose"),
    (
        Column("sae", pa.string(), "", "label of the SAE in the study; * for all SAEs together"),
        Column("locus", pa.string(), "", "as in plan"),
        Column("relation", pa.string(), "", "as in plan"),
        Column("interference_bin", pa.int8(), "", "as in plan; -1 for controls"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "signed"),
        Column("logodds", pa.float64(), "nats", "mean change in log-odds of T", nullable=True),
        Column("lo", pa.float64(), "nats", "95 % interval over targets", nullable=True),
        Column("hi", pa.float64(), "nats", "95 % interval over targets", nullable=True),
        Column("kl", pa.float64(), "nats", "mean KL", nullable=True),
        Column("n_trials", pa.int64(), "trials", ""),
        Column("n_targets", pa.int64(), "features", ""),
    ),
)

MISSING = Schema(
    "missing",
    1,
    ("locus", "relation", "status", "reason"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        Column("relation", pa.string(), "", "as in plan"),
        Column("status", pa.string(), "", "ok | skipped | failed | absent"),
        Column("reason", pa.string(), "", "'' for ok"),
        Column("n_trials", pa.int64(), "trials", "how many planned trials ended so"),
    ),
)

STAGES: dict[str, tuple[Schema, ...]] = {
    "features": (FEATURES, GLOSSES, CONTEXTS, CLUSTERS),
    "pairs": (PAIRS, DENSITY, SPECTRUM, PARTNERS),
    "plan": (PLAN, PROMPTS),
    "trials": (TRIALS,),
    "effects": (EFFECTS, PAIR_EFFECTS, DOSE_RESPONSE, MISSING),
}
"""Stage name -> its tables, in the order in which a study runs."""
