"""The tables of a study. Result columns are documented here and nowhere else.

Stage folders hold these tables:

    features/   features, glosses, contexts, clusters; embeddings.safetensors: one [n_features d_embed] tensor
                per SAE, rows in the order of `features`, zero rows where there is no gloss
    pairs/      pairs, density, spectrum, partners
    plan/       plan, prompts
    trials/     trials
    effects/    effects, pair_effects, dose_response, missing, presets
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
        Column("token_ids", _INTS, "token ids", "as given to the model, BOS included where used"),
        Column("source", pa.string(), "", "template, file and line, or document and offset"),
        Column("split", pa.string(), "", "select | confirm"),
    ),
)

SIGNALS = Schema(
    "signals",
    1,
    ("sae", "target", "source"),
    (
        _SAE,
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
        _SAE,
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
        _SAE,
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

TRIALS = Schema(
    "trials",
    2,
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
        Column(
            "rho",
            pa.float64(),
            "share",
            "signed share of the shift that goes into the odds of T: sqrt(KL of T's odds / KL), in [-1, 1]",
            nullable=True,
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
            "signed norm of the vector added at each position; for neurons the relative change",
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
    2,
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
        Column(
            "p_equivalent",
            pa.float64(),
            "probability",
            "of the claim that the effect is within the declared margin (TOST); null where no margin is declared",
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

PRESETS = Schema(
    "presets",
    1,
    ("locus", "token_set", "question", "relation", "path", "step"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("question", pa.string(), "", "slope_b | slope_a | mean | difference; see stats/presets.py"),
        Column("relation", pa.string(), "", "as in plan: whose effects are asked about"),
        Column("path", pa.string(), "", "walk (changes add up) | alone (one change) | optimism"),
        Column(
            "step", pa.int32(), "", "place on the path; a walk goes from 0, the paper's, to the strict one"
        ),
        Column(
            "choice",
            pa.string(),
            "",
            "paper, or what was changed in this step; of optimism: what is averaged",
        ),
        Column("estimate", pa.float64(), "unit", "point estimate", nullable=True),
        Column("se", pa.float64(), "unit", "its standard error", nullable=True),
        Column("lo", pa.float64(), "unit", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "unit", "upper end of the interval", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("p", pa.float64(), "probability", "two-sided, not adjusted", nullable=True),
        Column("unit", pa.string(), "", "unit of the estimate"),
        Column("method", pa.string(), "", "estimator, and what counts as independent"),
        Column("n_rows", pa.int64(), "rows", "trials, or pairs where errors are clustered"),
        Column("n_pairs", pa.int64(), "arms", "pairs and controls that enter"),
        Column("n_targets", pa.int64(), "features", ""),
        Column("n_doses", pa.int64(), "strengths", "signed strengths among which the paper's way chooses"),
        Column("note", pa.string(), "", "what must be said next to the number", nullable=True),
    ),
)

RELIABILITY = Schema(
    "reliability",
    1,
    ("locus", "token_set"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("measure", pa.string(), "", "what the second measure of gloss similarity is"),
        Column(
            "r", pa.float64(), "", "correlation of the two measures: reliability of either", nullable=True
        ),
        Column("r_lo", pa.float64(), "", "lower end of its interval", nullable=True),
        Column("r_hi", pa.float64(), "", "upper end of its interval", nullable=True),
        Column(
            "naive",
            pa.float64(),
            "unit",
            "coefficient of interference, the first measure as control",
            nullable=True,
        ),
        Column(
            "corrected",
            pa.float64(),
            "unit",
            "... the first measure instrumented by the second",
            nullable=True,
        ),
        Column("lo", pa.float64(), "unit", "lower end of its interval", nullable=True),
        Column("hi", pa.float64(), "unit", "upper end of its interval", nullable=True),
        Column("p", pa.float64(), "probability", "two-sided, not adjusted", nullable=True),
        Column("similarity", pa.float64(), "unit", "corrected coefficient of similarity", nullable=True),
        Column("first_stage_f", pa.float64(), "", "F of the instrument; below 10 it is weak", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("unit", pa.string(), "", "unit of the coefficients"),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("note", pa.string(), "", "what must be said next to the number", nullable=True),
    ),
)

RESPONSE = Schema(
    "response",
    1,
    ("sae", "locus", "relation", "target", "source", "draw", "token_set", "dose"),
    (
        _SAE,
        Column("locus", pa.string(), "", "as in plan"),
        Column("relation", pa.string(), "", "pair | self | random_feature"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("draw", pa.int32(), "", ""),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value, as in plan"),
        Column(
            "linear",
            pa.float64(),
            "nats",
            "linear response: gradient . push, mean over the prompts of pair_effects",
        ),
        Column(
            "linear_direct",
            pa.float64(),
            "nats",
            "its part that passes no further block; null where there is no direct path",
            nullable=True,
        ),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)


def _part(name: str, meaning: str) -> Column:
    return Column(name, pa.float64(), "nats", meaning, nullable=True)


DECOMPOSITION = Schema(
    "decomposition",
    1,
    ("sae", "target", "source", "token_set"),
    (
        _SAE,
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value"),
        _part(
            "total",
            "odd change in log-odds; shared + common + own = direct + indirect = mediated + remainder",
        ),
        _part("shared", "of the part of the push along the target's direction: interference proper"),
        _part("common", "of the part along what all directions share"),
        _part("own", "of the rest: the source's own route"),
        _part("interaction", "total minus the three parts taken alone"),
        _part("direct", "without any further block; null where there is no direct path"),
        _part("indirect", "through further blocks"),
        _part("mediated", "of the target's own latent, moved as the encoder reads the push"),
        _part("remainder", "total minus mediated"),
        _part("clean", "total on the target tokens that are not also the source's; null if none is left"),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)

METRICS = Schema(
    "metrics",
    1,
    ("sae", "target", "source", "metric"),
    (
        _SAE,
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("metric", pa.string(), "", "see linear/metrics.py"),
        Column("value", pa.float64(), "", "in the metric's own unit"),
    ),
)

COMPENSATION = Schema(
    "compensation",
    1,
    ("sae", "token_set", "band_lo", "band_hi"),
    (
        _SAE,
        Column("token_set", pa.string(), "", "in | out"),
        Column("band_lo", pa.float64(), "cosine", "pairs with |interference| from here"),
        Column("band_hi", pa.float64(), "cosine", "to here"),
        Column(
            "estimate",
            pa.float64(),
            "",
            "lambda: 0 = interference propagates in full, 1 = the readout cancels it",
            nullable=True,
        ),
        Column("lo", pa.float64(), "", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "", "upper end", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("floor", pa.float64(), "cosine", "crosstalk that no readout of so many features can go below"),
        Column("rms_cosine", pa.float64(), "cosine", "root mean square interference of the pairs"),
        Column("n_targets", pa.int64(), "features", ""),
        Column("n_sources", pa.int64(), "features", ""),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("note", pa.string(), "", "why there is no estimate", nullable=True),
    ),
)

GRADIENT_PATH = Schema(
    "gradient_path",
    1,
    ("sae", "locus", "token_set", "dose", "target", "source"),
    (
        _SAE,
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("total", pa.float64(), "nats", "measured odd change in log-odds, mean over the prompts"),
        Column("linear", pa.float64(), "nats", "gradient at the prompt . push"),
        Column("path", pa.float64(), "nats", "gradient averaged from -push to +push . push"),
        Column("n_prompts", pa.int64(), "prompts", "confirm prompts sampled"),
    ),
)
"""A sample of pairs: what the gradient says at the prompt, and averaged along the push."""

GRADIENT_MATRIX = Schema(
    "gradient_matrix",
    1,
    ("sae", "token_set", "target", "source"),
    (
        _SAE,
        Column("token_set", pa.string(), "", "in | out"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("interference", pa.float64(), "cosine", ""),
        Column(
            "linear", pa.float64(), "nats per unit", "gradient of the target . unit direction of the source"
        ),
    ),
)
"""Targets x features, neither chosen by interference: what permutation tests need."""

REPLICATED = Schema(
    "replicated",
    1,
    ("sae", "other", "token_set", "target", "source"),
    (
        _SAE,
        Column("other", pa.string(), "", "SAE of the same site"),
        Column("token_set", pa.string(), "", "in | out; every SAE's own tokens"),
        Column("target", pa.int32(), "", "in `sae`"),
        Column("source", pa.int32(), "", "in `sae`"),
        Column("other_target", pa.int32(), "", "its match in `other`"),
        Column("other_source", pa.int32(), "", ""),
        Column("linear", pa.float64(), "nats per unit", "linear response in `sae`"),
        Column("other_linear", pa.float64(), "nats per unit", "the same pair's in `other`"),
        Column("matched", pa.float64(), "share", "of the features of `sae` that have a match in `other`"),
        Column("best_cosine", pa.float64(), "cosine", "mean over them of the best one in `other`"),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)

EXPLAINED = Schema(
    "explained",
    1,
    ("locus", "token_set", "model", "unseen"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("model", pa.string(), "", "which regressors: see stats/explain.py"),
        Column("unseen", pa.string(), "", "targets | sources: what the prediction has not seen"),
        Column("r2", pa.float64(), "share", "held-out R2 of the effects of pairs", nullable=True),
        Column("lo", pa.float64(), "share", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "share", "upper end", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("note", pa.string(), "", "why there is no number", nullable=True),
    ),
)

VALIDITY = Schema(
    "validity",
    2,
    ("sae", "locus", "token_set", "dose"),
    (
        Column("sae", pa.string(), "", "label of the SAE in the study; * for all SAEs together"),
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value"),
        Column("kl", pa.float64(), "nats", "mean KL of the arms"),
        Column(
            "r2",
            pa.float64(),
            "share",
            "of measured effects by linear response, nothing fitted",
            nullable=True,
        ),
        Column("n_arms", pa.int64(), "arms", ""),
        Column(
            "r2_path",
            pa.float64(),
            "share",
            "by the gradient averaged along the push; a sample",
            nullable=True,
        ),
        Column("n_path", pa.int64(), "pairs", "in that sample"),
    ),
)

CHECKS = Schema(
    "checks",
    1,
    ("check", "locus", "sae", "token_set"),
    (
        Column("check", pa.string(), "", "mixed_model | qap | missing: see stats/checks.py"),
        Column("locus", pa.string(), "", "as in plan; empty where no trial is needed"),
        Column("sae", pa.string(), "", "label of the SAE in the study; * for all SAEs together"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("estimate", pa.float64(), "unit", "", nullable=True),
        Column("lo", pa.float64(), "unit", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "unit", "upper end", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("p", pa.float64(), "probability", "two-sided", nullable=True),
        Column("n", pa.int64(), "pairs", "that the check rests on"),
        Column("unit", pa.string(), "", ""),
        Column(
            "verdict",
            pa.string(),
            "",
            "agrees | disagrees | related | unrelated | random | not_random | none",
        ),
        Column("note", pa.string(), "", "why there is no number, or what weakens it", nullable=True),
    ),
)

PAIR_TESTS = Schema(
    "pair_tests",
    1,
    ("locus", "sae", "token_set", "target", "source"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        _SAE,
        Column("token_set", pa.string(), "", "in | out"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("effect", pa.float64(), "nats", "odd change in log-odds at the headline dose"),
        Column(
            "p", pa.float64(), "probability", "share of random features with as large an effect, plus one"
        ),
        Column(
            "q_bh", pa.float64(), "probability", "Benjamini-Hochberg over the pairs of locus and token set"
        ),
        Column("q_by", pa.float64(), "probability", "Benjamini-Yekutieli, for any dependence"),
        Column("n_null", pa.int64(), "arms", "random features compared with"),
    ),
)

REPLICATION = Schema(
    "replication",
    1,
    ("sae", "other", "token_set"),
    (
        _SAE,
        Column("other", pa.string(), "", "SAE of the same site"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("matched", pa.float64(), "share", "of the features that have a match"),
        Column("best_cosine", pa.float64(), "cosine", "mean of the best ones"),
        Column("correlation", pa.float64(), "", "of linear responses of the same pairs", nullable=True),
        Column("lo", pa.float64(), "", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "", "upper end", nullable=True),
        Column("sign_agreement", pa.float64(), "share", "of pairs with equal signs", nullable=True),
        Column("sign_lo", pa.float64(), "share", "", nullable=True),
        Column("sign_hi", pa.float64(), "share", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("n_targets", pa.int64(), "features", ""),
        Column("note", pa.string(), "", "why there is no number", nullable=True),
    ),
)

SPECIFICATION = Schema(
    "specification",
    1,
    ("locus", "token_set", "min_interference", "max_similarity", "fixed_effects"),
    (
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("min_interference", pa.float64(), "cosine", "pairs with |interference| from here"),
        Column("max_similarity", pa.float64(), "cosine", "and gloss similarity below this"),
        Column("fixed_effects", pa.string(), "", "layer_type | target"),
        Column("estimate", pa.float64(), "nats per cosine", "slope on interference", nullable=True),
        Column("lo", pa.float64(), "nats per cosine", "", nullable=True),
        Column("hi", pa.float64(), "nats per cosine", "", nullable=True),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column(
            "p_joint",
            pa.float64(),
            "probability",
            "of a median |t| over all specifications of the locus and token set as large, by permutation",
            nullable=True,
        ),
    ),
)

POWER = Schema(
    "power",
    1,
    ("contrast", "locus", "token_set"),
    (
        Column("contrast", pa.string(), "", "as in effects"),
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("se", pa.float64(), "unit", "standard error of the estimate"),
        Column("smallest", pa.float64(), "unit", "effect that would be seen in 80 % of such studies"),
        Column("smallest_absent", pa.float64(), "unit", "margin at which a true zero passes in 80 % of them"),
        Column("margin", pa.float64(), "unit", "declared margin"),
        Column("level", pa.float64(), "probability", ""),
        Column("unit", pa.string(), "", ""),
    ),
)
ATLAS_TOP = Schema(
    "atlas_top",
    1,
    ("sae", "target", "rank"),
    (
        _SAE,
        Column("target", pa.int32(), "", "feature whose token set is read out"),
        Column("rank", pa.int32(), "", "0 is the source with the largest absolute effect"),
        Column("source", pa.int32(), "", "feature whose direction is pushed"),
        Column(
            "effect",
            pa.float64(),
            "nats per resid_norm",
            "predicted change of the target's log-odds per unit of dose, to first order, mean over prompts",
        ),
        Column("interference", pa.float64(), "cosine", "of the two unit decoder rows"),
        Column("similarity", pa.float64(), "cosine", "of the two gloss embeddings", nullable=True),
    ),
)

ATLAS_DENSITY = Schema(
    "atlas_density",
    1,
    ("sae", "axis", "cosine_lo", "effect_lo"),
    (
        _SAE,
        Column("axis", pa.string(), "", "interference | similarity: which cosine"),
        Column("cosine_lo", pa.float64(), "cosine", "lower edge of the cell"),
        Column("cosine_hi", pa.float64(), "cosine", "upper edge"),
        Column(
            "effect_lo", pa.float64(), "nats per resid_norm", "lower edge; the end cells hold what is beyond"
        ),
        Column("effect_hi", pa.float64(), "nats per resid_norm", "upper edge"),
        Column(
            "count",
            pa.int64(),
            "pairs",
            "ordered pairs (target, source) in the cell; empty cells are left out",
        ),
    ),
)

ATLAS_SAMPLE = Schema(
    "atlas_sample",
    1,
    ("sae", "stratum", "target", "source", "prompt_id"),
    (
        _SAE,
        Column("stratum", pa.string(), "", "uniform (over all pairs) | top (over atlas_top)"),
        Column("target", pa.int32(), "", "as in atlas_top"),
        Column("source", pa.int32(), "", "as in atlas_top"),
        Column("prompt_id", pa.string(), "", "key of prompts"),
        Column("dose", pa.float64(), "resid_norm", "at which the KL is reached"),
        Column("kl", pa.float64(), "nats", "KL(before || after) that was reached"),
        Column(
            "predicted",
            pa.float64(),
            "nats",
            "change of log-odds by the gradient of this prompt at this dose",
        ),
        Column("measured", pa.float64(), "nats", "change of log-odds of the real push"),
    ),
)

ATLAS_FIT = Schema(
    "atlas_fit",
    1,
    ("sae", "stratum"),
    (
        _SAE,
        Column("stratum", pa.string(), "", "as in atlas_sample"),
        Column(
            "r2", pa.float64(), "", "1 - residual / variance of the measured effects; no refit", nullable=True
        ),
        Column("lo", pa.float64(), "", "95 % interval, bootstrap over pairs", nullable=True),
        Column("hi", pa.float64(), "", "95 % interval", nullable=True),
        Column("slope", pa.float64(), "", "measured on predicted, through zero", nullable=True),
        Column("n", pa.int64(), "interventions", "real pushes that reached the KL"),
        Column("n_asked", pa.int64(), "interventions", "real pushes that were tried"),
        Column(
            "n_targets", pa.int64(), "features", "targets of the atlas: those whose token set can be read"
        ),
        Column("n_pairs", pa.int64(), "pairs", "ordered pairs (target, source) of the atlas"),
        Column("n_prompts", pa.int64(), "prompts", "that the atlas is averaged over"),
    ),
)

ATLAS: tuple[Schema, ...] = (ATLAS_TOP, ATLAS_DENSITY, ATLAS_SAMPLE, ATLAS_FIT)
"""tables of `polysem atlas`, one file each per SAE"""

STAGES: dict[str, tuple[Schema, ...]] = {
    "features": (FEATURES, GLOSSES, CONTEXTS, CLUSTERS),
    "pairs": (PAIRS, DENSITY, SPECTRUM, PARTNERS),
    "plan": (PLAN, PROMPTS, NEURONS, NEURON_DEGREES, SIGNALS),
    "trials": (TRIALS,),
    "response": (
        *(RESPONSE, DECOMPOSITION, METRICS, COMPENSATION),
        *(GRADIENT_PATH, GRADIENT_MATRIX, REPLICATED),
    ),
    "effects": (
        EFFECTS,
        PAIR_EFFECTS,
        DOSE_RESPONSE,
        MISSING,
        EXPLAINED,
        VALIDITY,
        SPECIFICATION,
        POWER,
        PRESETS,
        CHECKS,
        PAIR_TESTS,
        REPLICATION,
        RELIABILITY,
    ),
}
"""Stage name -> its tables, in the order in which a study runs."""

TRANSFER_SHARED = Schema(
    "transfer_shared",
    1,
    ("source_a", "source_b"),
    (
        Column("source_a", pa.string(), "", "first source"),
        Column("source_b", pa.string(), "", "second source"),
        Column("n_segments", pa.int64(), "segments", "of text between common token ends"),
        Column("n_matched", pa.int64(), "features", "mutual nearest neighbours by correlation"),
        Column("n_pairs_a", pa.int64(), "pairs", "of matched features that pass in the first source"),
        Column("n_pairs_b", pa.int64(), "pairs", "... in the second"),
        Column("n_shared", pa.int64(), "pairs", "... in both"),
        Column("expected", pa.float64(), "pairs", "shared pairs under a permuted matching"),
        Column("lift", pa.float64(), "ratio", "n_shared / expected", nullable=True),
        Column("lift_lo", pa.float64(), "ratio", "", nullable=True),
        Column("lift_hi", pa.float64(), "ratio", "", nullable=True),
        Column(
            "fraction", pa.float64(), "fraction", "chance-corrected share of common structure", nullable=True
        ),
        Column("fraction_lo", pa.float64(), "fraction", "", nullable=True),
        Column("fraction_hi", pa.float64(), "fraction", "", nullable=True),
        Column("p", pa.float64(), "probability", "one-sided, from permuted matchings", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

TRANSFER_SETS = Schema(
    "transfer_sets",
    1,
    ("category", "arm"),
    (
        Column("category", pa.string(), "", "whose words are read out"),
        Column("arm", pa.string(), "", "target | shared | source_only | neither | high | low | random"),
        Column(
            "n_strings",
            pa.int64(),
            "strings",
            "disjoint within (shared, source_only, neither) and (high, low)",
        ),
        Column("n_treated", pa.int64(), "pools", "treated pools; 0 where the arm could not be run"),
        Column("n_reference", pa.int64(), "pools", "matched reference pools"),
        Column(
            "overlap",
            pa.string(),
            "",
            "strings in common with other arms before sets were made disjoint: JSON",
        ),
        Column(
            "imbalance",
            pa.string(),
            "",
            "treated minus reference, in SDs of the universe, by covariate: JSON",
        ),
        Column("reason", pa.string(), "", "why the arm was not run", nullable=True),
    ),
)

TRANSFER_TRIALS = Schema(
    "transfer_trials",
    1,
    ("target", "category", "arm", "template", "position", "pool", "sentence", "draw"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("category", pa.string(), "", "whose sentences and arm sets were used"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("template", pa.string(), "", "how strings are written into the prompt"),
        Column("position", pa.string(), "", "where they stand"),
        Column("pool", pa.int32(), "", "treated pools from 0 up; reference pools from -1 down"),
        Column("sentence", pa.int32(), "", "number of the sentence in its category"),
        Column("draw", pa.int32(), "", "number of the draw from the pool"),
        Column("categories", _STRINGS, "", "order of the lists that follow"),
        Column("logodds", pa.list_(pa.float64()), "nats", "change of the log-odds of each category"),
        Column(
            "logodds_lo", pa.list_(pa.float64()), "nats", "its lower bound under truncation; -inf where none"
        ),
        Column(
            "logodds_hi", pa.list_(pa.float64()), "nats", "its upper bound under truncation; inf where none"
        ),
        Column("mass", pa.list_(pa.float64()), "probability", "change of the probability of each category"),
        Column("mass_lo", pa.list_(pa.float64()), "probability", "its lower bound under truncation"),
        Column("mass_hi", pa.list_(pa.float64()), "probability", "its upper bound under truncation"),
        Column(
            "success",
            pa.list_(pa.float64()),
            "",
            "more (1), as many (0) or fewer (-1) words in the top k; NaN where k was not granted",
        ),
        Column("kl_lo", pa.float64(), "nats", "lower bound of KL(baseline || injected)"),
        Column("kl_hi", pa.float64(), "nats", "upper bound; inf under truncation"),
        Column("tv_lo", pa.float64(), "probability", "lower bound of the total variation distance"),
        Column("tv_hi", pa.float64(), "probability", "upper bound"),
        Column("missing", pa.float64(), "probability", "mass of tokens that were not granted"),
        Column("refused", pa.bool_(), "", "the answer declines"),
    ),
)

TRANSFER_EFFECTS = Schema(
    "transfer_effects",
    1,
    ("target", "contrast", "arm", "category", "template", "position"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("contrast", pa.string(), "", "logodds | specific | success | welch"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("category", pa.string(), "", "whose words are read out"),
        Column("template", pa.string(), "", "as in transfer_trials"),
        Column("position", pa.string(), "", "as in transfer_trials"),
        Column("treated", pa.float64(), "unit", "mean under treated pools", nullable=True),
        Column("reference", pa.float64(), "unit", "mean under reference pools", nullable=True),
        Column("estimate", pa.float64(), "unit", "treated minus reference", nullable=True),
        Column("lo", pa.float64(), "unit", "", nullable=True),
        Column("hi", pa.float64(), "unit", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column(
            "bound_lo", pa.float64(), "unit", "least estimate that truncated answers allow", nullable=True
        ),
        Column(
            "bound_hi", pa.float64(), "unit", "largest estimate that truncated answers allow", nullable=True
        ),
        Column("p", pa.float64(), "probability", "of the contrast's own test", nullable=True),
        Column("p_adj", pa.float64(), "probability", "max-T over all categories", nullable=True),
        Column(
            "noise_floor", pa.float64(), "unit", "1.96 SDs of the estimate from jitter alone", nullable=True
        ),
        Column(
            "kl",
            pa.float64(),
            "nats",
            "mean KL of treated prompts (lower bound under truncation)",
            nullable=True,
        ),
        Column("refused", pa.float64(), "fraction", "treated answers that decline", nullable=True),
        Column("n_sentences", pa.int64(), "sentences", ""),
        Column("n_treated", pa.int64(), "pools", ""),
        Column("n_reference", pa.int64(), "pools", ""),
        Column("n_trials", pa.int64(), "trials", ""),
        Column("unit", pa.string(), "", "unit of the estimate"),
        Column("note", pa.string(), "", "what must be said next to the number", nullable=True),
    ),
)

TRANSFER_TARGETS = Schema(
    "transfer_targets",
    1,
    ("target",),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("what", pa.string(), "", "kind, model and address"),
        Column(
            "asked", pa.int64(), "log-probabilities", "asked for; null where all are there", nullable=True
        ),
        Column(
            "granted",
            pa.int64(),
            "log-probabilities",
            "given by the server; null where all are there",
            nullable=True,
        ),
        Column("missing", pa.float64(), "probability", "mean mass that was not granted"),
        Column("n_lost", pa.int64(), "answers", "in which tokens of equal text were lost"),
        Column(
            "noise",
            pa.float64(),
            "nats",
            "SD of a repeated baseline's log-odds, over categories",
            nullable=True,
        ),
        Column("n_prompts", pa.int64(), "prompts", "distinct prompts that the study asks"),
        Column("cost", pa.float64(), "unit of the study", "of all of them, by the declared price"),
        Column("cost_unit", pa.string(), "", ""),
        Column("coverage", pa.string(), "", "words of each category seen as one token: JSON"),
    ),
)

TRANSFER_STEERED = Schema(
    "transfer_steered",
    1,
    ("target", "kind", "category", "sentence", "feature"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "direction: feature (decoder row) | gradient (token gradient)"),
        Column("category", pa.string(), "", "whose sentence"),
        Column("sentence", pa.int32(), "", "number of the sentence in its category"),
        Column("feature", pa.int32(), "", "of the target's SAE, matched to both sources"),
        Column("place", pa.int32(), "", "of its pair in the matching of the sources"),
        Column("strength", pa.float64(), "activation units", "of the push, at the last position"),
        Column("kl", pa.float64(), "nats", "measured at +strength", nullable=True),
        Column("reached", pa.bool_(), "", "whether the dose was reached"),
        Column("categories", _STRINGS, "", "order of the list that follows"),
        Column(
            "logodds",
            pa.list_(pa.float64()),
            "nats",
            "odd part of the change of each category's log-odds; NaN where the dose was not reached",
        ),
    ),
)

TRANSFER_DIRECTIONS = Schema(
    "transfer_directions",
    1,
    ("target", "kind", "contrast", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "as in transfer_steered"),
        Column("contrast", pa.string(), "", "logodds | specific"),
        Column("arm", pa.string(), "", "target | shared | source_only | neither"),
        Column("category", pa.string(), "", "whose words are read out"),
        Column("treated", pa.float64(), "nats", "mean over the arm's features", nullable=True),
        Column("estimate", pa.float64(), "nats", "treated minus reference, within strata", nullable=True),
        Column("lo", pa.float64(), "nats", "", nullable=True),
        Column("hi", pa.float64(), "nats", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("p", pa.float64(), "probability", "one-sided, labels permuted within strata", nullable=True),
        Column("p_adj", pa.float64(), "probability", "Holm over categories", nullable=True),
        Column("kl", pa.float64(), "nats", "dose of every push"),
        Column("n_sentences", pa.int64(), "sentences", ""),
        Column("n_treated", pa.int64(), "features", "compared"),
        Column("n_reference", pa.int64(), "features", "compared"),
        Column("n_alone", pa.int64(), "features", "of the arm without a reference of their stratum"),
        Column("n_refused", pa.int64(), "features", "whose direction could not be made or dosed"),
    ),
)

TRANSFER_COST = Schema(
    "transfer_cost",
    1,
    ("target", "kind", "measure", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "prompt | feature | gradient"),
        Column("measure", pa.string(), "", "text (cross-entropy) | choices (accuracy)"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("category", pa.string(), "", "whose arm"),
        Column("base", pa.float64(), "unit", "without any injection"),
        Column("treated", pa.float64(), "unit", "change under the arm"),
        Column("reference", pa.float64(), "unit", "change under its reference", nullable=True),
        Column("estimate", pa.float64(), "unit", "treated minus reference", nullable=True),
        Column("lo", pa.float64(), "unit", "", nullable=True),
        Column("hi", pa.float64(), "unit", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("n_treated", pa.int64(), "injections", "prompts or directions of the arm"),
        Column("n_reference", pa.int64(), "injections", "... of its reference"),
        Column("n", pa.int64(), "texts or questions", ""),
        Column("unit", pa.string(), "", "nats per token | fraction"),
    ),
)

JUDGED = Schema(
    "annotations",
    1,
    ("sae", "i", "j", "judge"),
    (
        _SAE,
        Column("i", pa.int32(), "", "first feature, i < j"),
        Column("j", pa.int32(), "", "second feature"),
        Column("judge", pa.string(), "", "name in the panel"),
        Column("similarity", pa.float64(), "cosine", "of the two glosses"),
        Column(
            "related",
            pa.float64(),
            "",
            "1 both orders say so, 0 neither, 0.5 they differ; null where a reply was no answer",
            nullable=True,
        ),
    ),
)

JUDGEMENTS = Schema(
    "judgements",
    1,
    ("measure", "judge", "other"),
    (
        Column("measure", pa.string(), "", "related | kappa | forced choice"),
        Column("judge", pa.string(), "", "name in the panel"),
        Column("other", pa.string(), "", "second judge of a kappa; else empty"),
        Column("estimate", pa.float64(), "fraction or kappa", "", nullable=True),
        Column(
            "lo", pa.float64(), "fraction or kappa", "Wilson; bootstrap over pairs for kappa", nullable=True
        ),
        Column("hi", pa.float64(), "fraction or kappa", "", nullable=True),
        Column("p", pa.float64(), "probability", "exact binomial against one half", nullable=True),
        Column(
            "agreement", pa.float64(), "fraction", "of pairs on which both judges say the same", nullable=True
        ),
        Column("n", pa.int64(), "pairs", "that count"),
        Column(
            "n_missing", pa.int64(), "pairs", "without an answer, or with answers that depend on the order"
        ),
        Column(
            "n_inconsistent", pa.int64(), "pairs", "annotated otherwise in the other order", nullable=True
        ),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

WRITTEN_GLOSSES = Schema(
    "written_glosses",
    1,
    ("sae", "feature", "explainer"),
    (
        _SAE,
        _FEATURE,
        Column("explainer", pa.string(), "", "name in the panel"),
        Column("judge", pa.string(), "", "who scored the gloss"),
        Column("gloss", pa.string(), "", "null where no reply was one", nullable=True),
        Column("detection", pa.float64(), "fraction", "contexts put right; chance is 0.5", nullable=True),
        Column("lo", pa.float64(), "fraction", "Wilson", nullable=True),
        Column("hi", pa.float64(), "fraction", "", nullable=True),
        Column("n", pa.int64(), "contexts", "judged"),
        Column("n_missing", pa.int64(), "contexts", "without an answer"),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

DEFENCES = Schema(
    "defences",
    1,
    ("target", "defence", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("defence", pa.string(), "", "monitor | filter"),
        Column("arm", pa.string(), "", "whose prompts are to be found"),
        Column("category", pa.string(), "", "of the prompts"),
        Column("auroc", pa.float64(), "probability", "that an attacked input scores above a clean one"),
        Column("lo", pa.float64(), "probability", "bootstrap over inputs"),
        Column("hi", pa.float64(), "probability", ""),
        Column(
            "found", pa.float64(), "fraction", "attacked inputs flagged where 1 % of clean ones were to be"
        ),
        Column("found_lo", pa.float64(), "fraction", "Wilson"),
        Column("found_hi", pa.float64(), "fraction", ""),
        Column(
            "false_positives",
            pa.float64(),
            "fraction",
            "clean inputs flagged, of those that set no threshold",
        ),
        Column("false_lo", pa.float64(), "fraction", "Wilson"),
        Column("false_hi", pa.float64(), "fraction", ""),
        Column("n_clean", pa.int64(), "inputs", ""),
        Column("n_attacked", pa.int64(), "inputs", ""),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

PROTECTED = Schema(
    "protected",
    1,
    ("target", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("category", pa.string(), "", "towards which it is steered; all others are protected"),
        Column("kept", pa.float64(), "fraction", "norm of what is left of the unit direction"),
        Column("off_before", pa.float64(), "nats", "mean |change| of protected categories, unprotected"),
        Column("off_after", pa.float64(), "nats", "... protected, at the same strength"),
        Column("reduction", pa.float64(), "fraction", "of the off-target change", nullable=True),
        Column("on_before", pa.float64(), "nats", "change of the category itself, unprotected"),
        Column("on_after", pa.float64(), "nats", "... protected"),
        Column("loss", pa.float64(), "fraction", "of the on-target change", nullable=True),
        Column("base_nats", pa.float64(), "nats per token", "of held-out text", nullable=True),
        Column("cost_before", pa.float64(), "nats per token", "change under the direction", nullable=True),
        Column("cost_after", pa.float64(), "nats per token", "... under what is left of it", nullable=True),
        Column("kl", pa.float64(), "nats", "dose of the unprotected push"),
        Column("n_features", pa.int64(), "features", "of which the direction is the mean"),
        Column("n_sentences", pa.int64(), "sentences", "on which effects are measured"),
        Column("n_texts", pa.int64(), "texts", "on which the cost is measured"),
    ),
)

TRANSFER: tuple[Schema, ...] = (
    TRANSFER_SHARED, TRANSFER_SETS, TRANSFER_TRIALS, TRANSFER_EFFECTS, TRANSFER_TARGETS, TRANSFER_STEERED,
    TRANSFER_DIRECTIONS, TRANSFER_COST,
)  # fmt: skip
"""Tables of a transfer study, in the order in which they are made."""
