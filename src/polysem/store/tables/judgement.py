"""How sure the effects are: models, validity, checks, single pairs, replication, thresholds, power."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import SAE

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
        SAE,
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
        SAE,
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
