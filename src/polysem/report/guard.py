"""The page of `polysem guard`: what sees a concept, what the clamp of its features takes, what brings it back, and what hides."""

from collections.abc import Sequence

from markupsafe import Markup

from polysem.report.charts import Bar, dot_plot
from polysem.report.html import NOTE, Chapter, Column, Row, Rows, ends, interval, section, table

SHOWN = 20
_MONITORS: tuple[Column, ...] = (
    *("shift", "monitor", "made_of"),
    ("AUROC", lambda r: interval(r, "auroc")),
    ends("found at 1 %", "found"),
    ("false alarms", "false_alarms"),
    ("calibration error", "ece"),
    ("delay, tokens", lambda r: interval(r, "delay", "delay_lo", "delay_hi")),
    ("of documents", "n_late"),
    ("flagged before", "n_early"),
    ("alarms at any token", "alarms"),
    ("with", "n_on"),
    ("without", "n_off"),
)
_ALARMS: tuple[Column, ...] = ("group", "explained", ("share of the activation", "share"), "n", NOTE)
_RECOVERY: tuple[Column, ...] = (
    *("site", "arm"),
    ("norms", "radius"),
    ("recovered", lambda r: interval(r, "recovered")),
    ("drift", "drift"),
    ("in clamped decoders", "in_decoders"),
    ("seen by the dictionary", "in_dictionary"),
    ("in one neuron", "in_neuron"),
    ("prompts", "n_prompts"),
)
_NEURONS: tuple[Column, ...] = (
    "layer",
    "neuron",
    "forecast",
    ("measured", lambda r: interval(r, "measured")),
)
_EVASION: tuple[Column, ...] = (
    ("nats", "effect"),
    *("kind", "feature", "detector", "interference", "length"),
    ("KL, nats", "kl"),
    ("seen (AUROC)", lambda r: interval(r, "seen")),
    ("gap", lambda r: interval(r, "gap", "gap_lo", "gap_hi")),
    ("prompts", "n_prompts"),
)
DETECTORS = ("target", "reader", "site", "later", "output", "text")
_KINDS: tuple[Column, ...] = (("nats", "effect"), "kind", ("pushes", "n"), ("KL, nats", "kl"), *DETECTORS)
_FINDINGS: tuple[Column, ...] = ("name", ("value", lambda r: interval(r, "value")), "n", NOTE)


def page(found: Rows) -> Chapter:
    """What the stage has to show."""
    seen = [
        (f"{r['monitor']}, {r['shift']}", [Bar("pair", r["auroc"], r["lo"], r["hi"], f"{r['n_on']} with")])
        for r in found["guard_monitors"]
    ]
    evasion = sorted(found["guard_evasion"], key=lambda r: (r["effect"], r["detector"], -r["seen"]))
    parts = [
        section("Findings", "What is said below in numbers.", table(_FINDINGS, found["guard_findings"], caption="findings")),
        section(
            "Monitors",
            "Fitted on one half of the documents, judged on the other, and on shifts. The random feature fires as often as the single one.",
            Markup("<figure>{}</figure>").format(dot_plot(seen, title="documents with and without", x_label="AUROC")),
            table(_MONITORS, found["guard_monitors"], caption="monitors"),
            table(_ALARMS, found["guard_alarms"], caption="false alarms of the single feature, at 5 %"),
        ),
        section(
            "Clamp and recovery",
            "A move at the last position, on the clamped state. Handle: orthogonal to the clamped encoders, so that no clamped feature sees it; later on to what arrives of their decoders, too.",
            table(_RECOVERY, sorted(found["guard_recovery"], key=lambda r: (r["site"], r["arm"], r["radius"])), caption="recovered by radius"),
        ),
        section("Neurons one by one", "Set to 0; the largest by gradient, measured.", table(_NEURONS, sorted(found["guard_neurons"], key=lambda r: -abs(r["measured"]))[:SHOWN], caption="neurons")),
        section(
            "Pushes of equal effect",
            "Seen: how well a detector tells pushed prompts from the same ones without a push. Gap: how much less than the target's own push.",
            table(_KINDS, _by_kind(evasion), caption="seen, mean over pushes of a kind"),
            table(_EVASION, evasion, caption="pushes"),
        ),
    ]  # fmt: skip
    lead = (
        "Is the feature a safe handle: does it see the concept, does its clamp hold, and what gets past it?"
    )
    return Chapter("A concept and its handle", lead, Markup("").join(parts))


def _by_kind(rows: Sequence[Row]) -> list[Row]:
    """A row for every effect and kind, a column for every detector."""
    made: list[Row] = []
    for effect, kind in dict.fromkeys((r["effect"], r["kind"]) for r in rows):
        mine = [r for r in rows if (r["effect"], r["kind"]) == (effect, kind)]
        seen = {d: [r["seen"] for r in mine if r["detector"] == d] for d in DETECTORS}
        means = {d: sum(x) / len(x) if x else None for d, x in seen.items()}
        kl = sum(r["kl"] for r in mine) / len(mine)
        made.append(
            {"effect": effect, "kind": kind, "kl": kl, "n": len({r["feature"] for r in mine}), **means}
        )
    return made
