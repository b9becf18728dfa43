"""Effects, and what their tests and presets say."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import SAE

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
        SAE,
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
