"""The page of `polysem defend`: what each defence finds, and what it costs."""

from markupsafe import Markup

from polysem.report.html import Chapter, Column, Rows, ends, interval, table

_DETECTORS: tuple[Column, ...] = (
    *("target", "defence", "arm", "category"),
    ("AUROC", lambda r: interval(r, "auroc")),
    ends("found", "found"),
    ("false positives", lambda r: interval(r, "false_positives", "false_lo", "false_hi")),
    ("attacked", "n_attacked"),
    ("clean", "n_clean"),
)
_PROTECTED: tuple[Column, ...] = (
    "target",
    ("towards", "category"),
    ("off-target, before", "off_before"),
    ("after", "off_after"),
    "reduction",
    ("on-target, before", "on_before"),
    ("after", "on_after"),
    "loss",
    ("cost before (nats per token)", "cost_before"),
    ("after", "cost_after"),
    ("features", "n_features"),
    ("sentences", "n_sentences"),
)


def page(found: Rows) -> Chapter:
    """What the stage has to show."""
    steered = found["protected"]
    noticing = Markup(
        "<h2>Noticing</h2><p><em>Filter</em>: cross-entropy of the input. <em>Monitor</em>: what active features write into "
        "others that are not meant, on the largest token. Found: share of attacked inputs above the threshold that flags 1&nbsp;% "
        "of one half of the clean inputs; false positives are counted on the other half. Where a prompt filter finds all, it "
        "removes the effect; prompts of every arm are prefixes of strings, so it is no defence against directions.</p>{}"
    ).format(table(_DETECTORS, found["defences"], caption="detectors"))
    protected = Markup(
        "<h2>Protected steering</h2><p>Steering towards a category with the gradients of all others projected out of the "
        "direction. Gradients are of one half of the sentences, changes of log-odds (nats) of the other; both directions are "
        "steered equally hard.</p>{}"
    ).format(table(_PROTECTED, steered, caption="protected steering"))
    if not steered:
        protected = Markup("<h2>Protected steering</h2><p>Not measured: no local target has an SAE.</p>")
    lead = "What would notice or prevent it, and at what cost?"
    return Chapter("Defences", lead, noticing + protected)
