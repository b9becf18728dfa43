"""How sure the effects are: models, validity, checks, single pairs, replication, thresholds, power."""

from polysem.store.tables import columns as c
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES

EXPLAINED = c.table("explained", 1, "locus", "token_set", "model", "unseen")(
    *(c.LOCUS, c.TOKENS),
    c.text("model", "which regressors: see stats/explain.py"),
    c.text("unseen", "targets | sources: what the prediction has not seen"),
    c.perhaps("r2", "share", "held-out R2 of the effects of pairs"),
    *c.interval("share"),
    *(c.LEVEL, c.N_PAIRS, c.WHY),
)

VALIDITY = c.table("validity", 2, "sae", "locus", "token_set", "dose")(
    *(c.ANY_SAE, c.LOCUS, c.TOKENS, c.DOSE),
    c.number("kl", "nats", "mean KL of the arms"),
    c.perhaps("r2", "share", "of measured effects by linear response, nothing fitted"),
    c.count("n_arms", "arms", "arms that enter"),
    c.perhaps("r2_path", "share", "by the gradient averaged along the push; a sample"),
    c.count("n_path", "pairs", "in that sample"),
)

CHECKS = c.table("checks", 1, "check", "locus", "sae", "token_set")(
    c.text("check", "mixed_model | qap | missing: see stats/checks.py"),
    c.text("locus", "as in plan; empty where no trial is needed"),
    *(c.ANY_SAE, c.TOKENS),
    c.perhaps("estimate", "unit", "what the check finds"),
    *c.interval("unit"),
    c.LEVEL,
    c.perhaps("p", "probability", "two-sided"),
    c.count("n", "pairs", "that the check rests on"),
    c.text("unit", "unit of the numbers"),
    c.text("verdict", "agrees | disagrees | related | unrelated | random | not_random | none"),
    c.text("note", "why there is no number, or what weakens it", nullable=True),
)

PAIR_TESTS = c.table("pair_tests", 2, "locus", "sae", "token_set", "target", "source")(
    *(c.LOCUS, c.SAE, c.TOKENS, c.TARGET, c.SOURCE),
    c.number("effect", "nats", "odd change at the headline dose; of T-out beyond the direct path"),
    c.number("p", "probability", "share of random features with as large an effect, plus one"),
    c.number("q_bh", "probability", "Benjamini-Hochberg over the pairs of locus and token set"),
    c.number("q_by", "probability", "Benjamini-Yekutieli, for any dependence"),
    c.count("n_null", "arms", "random features compared with"),
)

_REPLICA = (
    *(c.SAE, c.text("other", "SAE of the same site"), c.TOKENS),
    c.text("measure", "steered (odd changes under real steering) | linear (linear responses)"),
)

REPLICATION = c.table("replication", 2, "sae", "other", "token_set", "measure")(
    *_REPLICA,
    c.number("matched", "share", "of the features that have a match"),
    c.number("best_cosine", "cosine", "mean of the best ones"),
    c.perhaps("correlation", "", "of the effects of the same pairs"),
    *c.interval(""),
    c.perhaps("sign_agreement", "share", "of pairs with equal signs"),
    *c.interval("share", stem="sign"),
    *(c.LEVEL, c.N_PAIRS, c.N_TARGETS, c.WHY),
)

_STRATUM = "of the members of the pair, how many have a stable match: all (any number) | both | one | none"

EFFECT_SURVIVAL = c.table("effect_survival", 1, "sae", "other", "token_set", "measure", "stratum")(
    *_REPLICA,
    c.text("stratum", _STRATUM),
    c.perhaps("correlation", "", "of the effects of the same pairs in the two SAEs"),
    *c.interval("", stem="correlation"),
    c.perhaps("null", "", "the same, were matches alike by their cosine alone"),
    *c.interval("", stem="null"),
    c.perhaps("excess", "", "correlation less null"),
    *c.interval("", stem="excess"),
    *(c.LEVEL, c.N_PAIRS, c.N_TARGETS, c.WHY),
)

VARIANCE_COMPONENTS = c.table(
    "variance_components", 1, "sae", "other", "token_set", "measure", "stratum", "component"
)(
    *_REPLICA,
    c.text("stratum", _STRATUM),
    c.text(
        "component",
        "target | source | pair | dictionary | target_in_dictionary | source_in_dictionary | rest (pair in dictionary, and "
        "noise): variances | reliability_one, reliability_both: share of pair in pair and rest, of one dictionary's effect "
        "and of the mean of both",
    ),
    c.perhaps("value", "nats^2, or share", "may be below zero, which says that there is none"),
    *c.interval("nats^2, or share", "its interval (jackknife over features)"),
    c.perhaps("share", "share", "of the sum of all components; null for reliabilities"),
    *(c.LEVEL, c.N_PAIRS, c.count("n_features", "features", "that the pairs are of"), c.WHY),
)

SPECIFICATION = c.table(
    "specification",
    2,
    "locus",
    "token_set",
    "similarity",
    "min_interference",
    "max_similarity",
    "fixed_effects",
)(
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
    c.perhaps("estimate", "nats per cosine", "slope on interference; of T-out beyond the direct path"),
    *c.interval("nats per cosine"),
    c.N_PAIRS,
    c.perhaps(
        "p_joint",
        "probability",
        "of a median |t| over all specifications of the locus and token set as large, by permutation",
    ),
)

HETEROGENEITY = c.table("heterogeneity", 2, "contrast", "locus", "token_set", "site")(
    c.text("contrast", "as in effects; the declared ones"),
    *(c.LOCUS, c.TOKENS),
    c.text("site", "* for all SAEs of the study; else a site, of its two or more SAEs"),
    c.count("n_saes", "SAEs", "SAEs with an interval of their own"),
    c.perhaps("estimate", "unit", "all SAEs together, as in effects; null for one site"),
    c.perhaps("mean", "unit", "random-effects mean: what another such SAE would show"),
    *c.interval("unit"),
    c.perhaps("tau", "unit", "standard deviation of the SAEs' true values"),
    c.perhaps("i2", "share", "I2: of the SAEs' spread, what is no sampling error"),
    *c.interval("share", "its interval; null with two SAEs", "i2"),
    c.perhaps("q", "", "Cochran's Q"),
    c.perhaps("p", "probability", "of a Q as large, were all SAEs alike"),
    *(c.LEVEL, c.text("unit", "unit of the estimates"), c.WHY),
)

POWER = c.table("power", 1, "contrast", "locus", "token_set")(
    c.text("contrast", "as in effects"),
    *(c.LOCUS, c.TOKENS),
    c.number("se", "unit", "standard error of the estimate"),
    c.number("smallest", "unit", "effect that would be seen in 80 % of such studies"),
    c.number("smallest_absent", "unit", "margin at which a true zero passes in 80 % of them"),
    c.number("margin", "unit", "declared margin"),
    c.LEVEL,
    c.text("unit", "unit of the numbers"),
)

_VERDICT = "agrees | disagrees | untested"

FINDINGS = c.table("findings", 1, "contrast", "group")(
    *(c.text("contrast", "as in effects"), c.text("group", "as in effects"), c.LOCUS, c.TOKENS),
    c.flag("declared", "whether it answers a declared question: one of the study's first locus"),
    c.text("claim", " | ".join(CLAIMS)),
    *(c.text(grade.name, f"{_VERDICT}: {grade.help}") for grade in GRADES.values()),
    c.perhaps(
        "reach", "cosine", "95th percentile of |interference| of the pairs used; nothing is said beyond it"
    ),
    c.text(
        "against",
        "what keeps it from the claim predicts, in words: lines that disagree, and those of a grade that is untested",
        nullable=True,
    ),
)

GRADED = c.table("graded", 1, "contrast", "group", "line")(
    *(c.text("contrast", "as in effects"), c.text("group", "as in effects")),
    *(c.text("line", " | ".join(GRADE_LINES)), c.text("grade", " | ".join(GRADES))),
    c.text("verdict", f"{_VERDICT}; untested: nothing to test it on"),
    c.perhaps("estimate", "unit", "of the line that is furthest from agreeing"),
    *c.interval("unit"),
    c.perhaps("p", "probability", "of the line that is furthest from agreeing"),
    c.text("said", "the line in words"),
)
