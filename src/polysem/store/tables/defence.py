"""Defences of a finished transfer study."""

from polysem.store.tables import columns as c

DEFENCES = c.table("defences", 1, "target", "defence", "arm", "category")(
    c.text("target", "name of the target in the study"),
    c.text("defence", "monitor | filter"),
    c.text("arm", "whose prompts are to be found"),
    c.text("category", "of the prompts"),
    c.number("auroc", "probability", "that an attacked input scores above a clean one"),
    c.number("lo", "probability", "bootstrap over inputs"),
    c.number("hi", "probability", "upper end of the interval of auroc"),
    c.number("found", "fraction", "attacked inputs flagged where 1 % of clean ones were to be"),
    c.number("found_lo", "fraction", "Wilson"),
    c.number("found_hi", "fraction", "upper end of the interval of found"),
    c.number("false_positives", "fraction", "clean inputs flagged, of those that set no threshold"),
    c.number("false_lo", "fraction", "Wilson"),
    c.number("false_hi", "fraction", "upper end of the interval of false alarms"),
    c.count("n_clean", "inputs", "clean inputs that were scored"),
    c.count("n_attacked", "inputs", "attacked inputs that were scored"),
    c.LEVEL,
)

PROTECTED = c.table("protected", 1, "target", "category")(
    c.text("target", "name of the target in the study"),
    c.text("category", "towards which it is steered; all others are protected"),
    c.number("kept", "fraction", "norm of what is left of the unit direction"),
    c.number("off_before", "nats", "mean |change| of protected categories, unprotected"),
    c.number("off_after", "nats", "... protected, at the same strength"),
    c.perhaps("reduction", "fraction", "of the off-target change"),
    c.number("on_before", "nats", "change of the category itself, unprotected"),
    c.number("on_after", "nats", "... protected"),
    c.perhaps("loss", "fraction", "of the on-target change"),
    c.perhaps("base_nats", "nats per token", "of held-out text"),
    c.perhaps("cost_before", "nats per token", "change under the direction"),
    c.perhaps("cost_after", "nats per token", "... under what is left of it"),
    c.number("kl", "nats", "dose of unprotected steering"),
    c.count("n_features", "features", "of which the direction is the mean"),
    c.count("n_sentences", "sentences", "on which effects are measured"),
    c.count("n_texts", "texts", "on which the cost is measured"),
)
