"""How sure the effects are: models, validity, checks, single pairs, replication, thresholds, power."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables import columns as c
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES

EXPLAINED = Schema(
    "explained",
    1,
    ("locus", "token_set", "model", "unseen"),
    (
        *(c.LOCUS, c.TOKENS),
        c.text("model", "which regressors: see stats/explain.py"),
        c.text("unseen", "targets | sources: what the prediction has not seen"),
        c.number("r2", "share", "held-out R2 of the effects of pairs", nullable=True),
        c.number("lo", "share", "lower end of the interval", nullable=True),
        c.number("hi", "share", "upper end", nullable=True),
        *(c.LEVEL, c.N_PAIRS, c.WHY),
    ),
)

VALIDITY = Schema(
    "validity",
    2,
    ("sae", "locus", "token_set", "dose"),
    (
        *(c.ANY_SAE, c.LOCUS, c.TOKENS, c.DOSE),
        c.number("kl", "nats", "mean KL of the arms"),
        c.number("r2", "share", "of measured effects by linear response, nothing fitted", nullable=True),
        c.count("n_arms", "arms", "arms that enter"),
        c.number("r2_path", "share", "by the gradient averaged along the push; a sample", nullable=True),
        c.count("n_path", "pairs", "in that sample"),
    ),
)

CHECKS = Schema(
    "checks",
    1,
    ("check", "locus", "sae", "token_set"),
    (
        c.text("check", "mixed_model | qap | missing: see stats/checks.py"),
        c.text("locus", "as in plan; empty where no trial is needed"),
        *(c.ANY_SAE, c.TOKENS),
        c.number("estimate", "unit", "what the check finds", nullable=True),
        c.number("lo", "unit", "lower end of the interval", nullable=True),
        c.number("hi", "unit", "upper end", nullable=True),
        c.LEVEL,
        c.number("p", "probability", "two-sided", nullable=True),
        c.count("n", "pairs", "that the check rests on"),
        c.text("unit", "unit of the numbers"),
        c.text("verdict", "agrees | disagrees | related | unrelated | random | not_random | none"),
        c.text("note", "why there is no number, or what weakens it", nullable=True),
    ),
)

PAIR_TESTS = Schema(
    "pair_tests",
    2,
    ("locus", "sae", "token_set", "target", "source"),
    (
        *(c.LOCUS, c.SAE, c.TOKENS, c.TARGET, c.SOURCE),
        c.number("effect", "nats", "odd change at the headline dose; of T-out beyond the direct path"),
        c.number("p", "probability", "share of random features with as large an effect, plus one"),
        c.number("q_bh", "probability", "Benjamini-Hochberg over the pairs of locus and token set"),
        c.number("q_by", "probability", "Benjamini-Yekutieli, for any dependence"),
        c.count("n_null", "arms", "random features compared with"),
    ),
)

REPLICATION = Schema(
    "replication",
    2,
    ("sae", "other", "token_set", "measure"),
    (
        c.SAE,
        c.text("other", "SAE of the same site"),
        c.TOKENS,
        c.text("measure", "steered (odd changes under real steering) | linear (linear responses)"),
        c.number("matched", "share", "of the features that have a match"),
        c.number("best_cosine", "cosine", "mean of the best ones"),
        c.number("correlation", "", "of the effects of the same pairs", nullable=True),
        c.number("lo", "", "lower end of the interval", nullable=True),
        c.number("hi", "", "upper end", nullable=True),
        c.number("sign_agreement", "share", "of pairs with equal signs", nullable=True),
        c.number("sign_lo", "share", "lower end of its interval", nullable=True),
        c.number("sign_hi", "share", "upper end of its interval", nullable=True),
        *(c.LEVEL, c.N_PAIRS, c.N_TARGETS, c.WHY),
    ),
)

_STRATUM = "of the members of the pair, how many have a stable match: all (any number) | both | one | none"

EFFECT_SURVIVAL = Schema(
    "effect_survival",
    1,
    ("sae", "other", "token_set", "measure", "stratum"),
    (
        c.SAE,
        c.text("other", "SAE of the same site"),
        c.TOKENS,
        c.text("measure", "steered (odd changes under real steering) | linear (linear responses)"),
        c.text("stratum", _STRATUM),
        c.number("correlation", "", "of the effects of the same pairs in the two SAEs", nullable=True),
        c.number("correlation_lo", "", "lower end of its interval", nullable=True),
        c.number("correlation_hi", "", "upper end of its interval", nullable=True),
        c.number("null", "", "the same, were matches alike by their cosine alone", nullable=True),
        c.number("null_lo", "", "lower end of its interval", nullable=True),
        c.number("null_hi", "", "upper end of its interval", nullable=True),
        c.number("excess", "", "correlation less null", nullable=True),
        c.number("excess_lo", "", "lower end of its interval", nullable=True),
        c.number("excess_hi", "", "upper end of its interval", nullable=True),
        *(c.LEVEL, c.N_PAIRS, c.N_TARGETS, c.WHY),
    ),
)

VARIANCE_COMPONENTS = Schema(
    "variance_components",
    1,
    ("sae", "other", "token_set", "measure", "stratum", "component"),
    (
        c.SAE,
        c.text("other", "SAE of the same site"),
        c.TOKENS,
        c.text("measure", "steered (odd changes under real steering) | linear (linear responses)"),
        c.text("stratum", _STRATUM),
        c.text(
            "component",
            "target | source | pair | dictionary | target_in_dictionary | source_in_dictionary | rest (pair in dictionary, and "
            "noise): variances | reliability_one, reliability_both: share of pair in pair and rest, of one dictionary's effect "
            "and of the mean of both",
        ),
        c.number(
            "value", "nats^2, or share", "may be below zero, which says that there is none", nullable=True
        ),
        c.number(
            "lo", "nats^2, or share", "lower end of its interval (jackknife over features)", nullable=True
        ),
        c.number("hi", "nats^2, or share", "upper end of its interval", nullable=True),
        c.number("share", "share", "of the sum of all components; null for reliabilities", nullable=True),
        *(c.LEVEL, c.N_PAIRS, c.count("n_features", "features", "that the pairs are of"), c.WHY),
    ),
)

SPECIFICATION = Schema(
    "specification",
    2,
    ("locus", "token_set", "similarity", "min_interference", "max_similarity", "fixed_effects"),
    (
        *(c.LOCUS, c.TOKENS),
        c.text(
            "similarity",
            "by what a pair is unrelated: gloss (the study's own cosine), a further measure, or all (by all of them)",
        ),
        c.number("min_interference", "cosine", "pairs with |interference| from here"),
        c.number(
            "max_similarity",
            "cosine",
            "and gloss similarity below this; of other measures, below the same quantile of random pairs",
        ),
        c.text("fixed_effects", "layer_type | target"),
        c.number(
            "estimate",
            "nats per cosine",
            "slope on interference; of T-out beyond the direct path",
            nullable=True,
        ),
        c.number("lo", "nats per cosine", "lower end of its interval", nullable=True),
        c.number("hi", "nats per cosine", "upper end of its interval", nullable=True),
        c.N_PAIRS,
        c.number(
            "p_joint",
            "probability",
            "of a median |t| over all specifications of the locus and token set as large, by permutation",
            nullable=True,
        ),
    ),
)

HETEROGENEITY = Schema(
    "heterogeneity",
    2,
    ("contrast", "locus", "token_set", "site"),
    (
        c.text("contrast", "as in effects; the declared ones"),
        *(c.LOCUS, c.TOKENS),
        c.text("site", "* for all SAEs of the study; else a site, of its two or more SAEs"),
        c.count("n_saes", "SAEs", "SAEs with an interval of their own"),
        c.number("estimate", "unit", "all SAEs together, as in effects; null for one site", nullable=True),
        c.number("mean", "unit", "random-effects mean: what another such SAE would show", nullable=True),
        c.number("lo", "unit", "lower end of its interval", nullable=True),
        c.number("hi", "unit", "upper end of its interval", nullable=True),
        c.number("tau", "unit", "standard deviation of the SAEs' true values", nullable=True),
        c.number("i2", "share", "I2: of the SAEs' spread, what is no sampling error", nullable=True),
        c.number("i2_lo", "share", "lower end of its interval; null with two SAEs", nullable=True),
        c.number("i2_hi", "share", "upper end of its interval", nullable=True),
        c.number("q", "", "Cochran's Q", nullable=True),
        c.number("p", "probability", "of a Q as large, were all SAEs alike", nullable=True),
        *(c.LEVEL, c.text("unit", "unit of the estimates"), c.WHY),
    ),
)

POWER = Schema(
    "power",
    1,
    ("contrast", "locus", "token_set"),
    (
        c.text("contrast", "as in effects"),
        *(c.LOCUS, c.TOKENS),
        c.number("se", "unit", "standard error of the estimate"),
        c.number("smallest", "unit", "effect that would be seen in 80 % of such studies"),
        c.number("smallest_absent", "unit", "margin at which a true zero passes in 80 % of them"),
        c.number("margin", "unit", "declared margin"),
        c.number("level", "probability", "nominal coverage"),
        c.text("unit", "unit of the numbers"),
    ),
)

_VERDICT = "agrees | disagrees | untested"

FINDINGS = Schema(
    "findings",
    1,
    ("contrast", "group"),
    (
        *(c.text("contrast", "as in effects"), c.text("group", "as in effects"), c.LOCUS, c.TOKENS),
        Column(
            "declared",
            pa.bool_(),
            "",
            "whether it answers a declared question: one of the study's first locus",
        ),
        c.text("claim", " | ".join(CLAIMS)),
        *(c.text(grade.name, f"{_VERDICT}: {grade.help}") for grade in GRADES.values()),
        c.number(
            "reach",
            "cosine",
            "95th percentile of |interference| of the pairs used; nothing is said beyond it",
            nullable=True,
        ),
        c.text(
            "against",
            "what keeps it from the claim predicts, in words: lines that disagree, and those of a grade that is untested",
            nullable=True,
        ),
    ),
)

GRADED = Schema(
    "graded",
    1,
    ("contrast", "group", "line"),
    (
        *(c.text("contrast", "as in effects"), c.text("group", "as in effects")),
        *(c.text("line", " | ".join(GRADE_LINES)), c.text("grade", " | ".join(GRADES))),
        c.text("verdict", f"{_VERDICT}; untested: nothing to test it on"),
        c.number("estimate", "unit", "of the line that is furthest from agreeing", nullable=True),
        c.number("lo", "unit", "lower end of its interval", nullable=True),
        c.number("hi", "unit", "upper end of its interval", nullable=True),
        c.number("p", "probability", "of the line that is furthest from agreeing", nullable=True),
        c.text("said", "the line in words"),
    ),
)
