"""What judges and explainers of a panel say about glosses."""

from polysem.store.tables import columns as c

JUDGED = c.table("annotations", 1, "sae", "i", "j", "judge")(
    c.SAE,
    c.index("i", "first feature, i < j"),
    c.index("j", "second feature"),
    c.text("judge", "name in the panel"),
    c.number("similarity", "cosine", "of the two glosses"),
    c.perhaps(
        "related", "", "1 both orders say so, 0 neither, 0.5 they differ; null where a reply was no answer"
    ),
)

JUDGEMENTS = c.table("judgements", 1, "measure", "judge", "other")(
    c.text("measure", "related | kappa | forced choice"),
    c.text("judge", "name in the panel"),
    c.text("other", "second judge of a kappa; else empty"),
    c.perhaps("estimate", "fraction or kappa", "the measure; null without usable answers"),
    c.perhaps("lo", "fraction or kappa", "Wilson; bootstrap over pairs for kappa"),
    c.perhaps("hi", "fraction or kappa", "upper end of the interval"),
    c.perhaps("p", "probability", "exact binomial against one half"),
    c.perhaps("agreement", "fraction", "of pairs on which both judges say the same"),
    c.count("n", "pairs", "that count"),
    c.count("n_missing", "pairs", "without an answer, or with answers that depend on the order"),
    c.count("n_inconsistent", "pairs", "annotated otherwise in the other order", nullable=True),
    c.LEVEL,
)

WRITTEN_GLOSSES = c.table("written_glosses", 1, "sae", "feature", "explainer")(
    *(c.SAE, c.FEATURE),
    c.text("explainer", "name in the panel"),
    c.text("judge", "who scored the gloss"),
    c.text("gloss", "null where no reply was one", nullable=True),
    c.perhaps("detection", "fraction", "contexts put right; chance is 0.5"),
    c.perhaps("lo", "fraction", "Wilson"),
    c.perhaps("hi", "fraction", "upper end of the interval of the score"),
    c.count("n", "contexts", "judged"),
    c.count("n_missing", "contexts", "without an answer"),
    c.LEVEL,
)
