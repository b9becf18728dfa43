"""The page of `polysem joint`: how far pushes add up, which pairs interact, what survives a layer, and plans."""

from collections.abc import Sequence

from markupsafe import Markup

from polysem.report.charts import Bar, dot_plot, legend
from polysem.report.html import NOTE, Chapter, Column, Row, Rows, ends, interval, probability, section, table
from polysem.report.text import number, plural, visible

SHOWN = 30
"""pairs of a table; the files hold all"""
_ORDERS: tuple[Column, ...] = (
    *("sae", "pool", "basis", "part"),
    ("above order", "order"),
    ("share of interactions", lambda r: interval(r, "residual")),
    ("sets", lambda r: f"all {r['n_sets']}" if r["exact"] else f"{r['n_sets']} drawn"),
)
_SIZES: tuple[Column, ...] = (
    *("sae", "size", "part"),
    ("not said by the sum", lambda r: interval(r, "unexplained")),
    ("worst set", "worst"),
    ("joint KL, nats", "kl"),
    ("over sum of single KLs", "coherence"),
    ("top token kept", "kept"),
)
_FINDINGS: tuple[Column, ...] = (*("sae", "name"), ("value", lambda r: interval(r, "value")), "n", NOTE)
_PAIRS: tuple[Column, ...] = (
    *("sae_i", "i", "j", "cosine", "lift", "odd", "even"),
    ends("y, odd", "y_odd"),
    ("p", lambda r: probability(r, "p_odd")),
    ends("y, even", "y_even"),
    ("p", lambda r: probability(r, "p_even")),
    ("second order", "second_order"),
    "forecast",
)
_LAYERS: tuple[Column, ...] = (
    *("sae_i", "i", "sae_j", "j", "cosine"),
    ("not said, live", "unexplained_live"),
    ("frozen", "unexplained_frozen"),
    ends("y, live", "y_live"),
    ends("y, frozen", "y_frozen"),
    ("i on j's tokens", "first"),
    ("not through j", "first_held"),
    *("survives", "matched"),
    ("its cosine", "matched_cosine"),
    ("survives along it", "survives_matched"),
)
_PLANS: tuple[Column, ...] = (
    "arm",
    ends("KL, nats", "kl"),
    ("forecast", "forecast_kl"),
    ("of the wish", "reached"),
    ("missed, nats", "missed"),
    ("protected, nats", "protected"),
    ("reach, token sets", "reach"),
    ("pushes", lambda r: f"{r['n_pushes']} of {r['n_candidates']}"),
)
_EFFECTS: tuple[Column, ...] = (
    *("role", "name"),
    ("tokens", lambda r: visible(" ".join(r["tokens"]))),
    *("asked", "forecast"),
    ("measured", lambda r: interval(r, "measured")),
)
_DOSES: tuple[Column, ...] = ("sae", "feature", "site", "strength", ("KL alone, nats", "kl"))


def page(found: Rows) -> Chapter:
    """What the stage has to show."""
    plans = sorted({row["plan"] for row in found["plans"]})
    parts = [_sums(found), _interactions(found), _layers(found), *(_plan(found, k) for k in plans)]
    lead = "Do several pushes do together what they do alone, and which strengths reach what is wanted at least cost?"
    return Chapter("Several pushes at once", lead, Markup("").join(parts))


def _sums(found: Rows) -> Markup:
    sizes = found["joint_sizes"]
    bars = [
        (
            f"{label}, {size}",
            [
                _bar(row)
                for row in sizes
                if (row["sae"], row["size"]) == (label, size) and row["part"] in _KINDS
            ],
        )
        for label, size in dict.fromkeys((row["sae"], row["size"]) for row in sizes)
    ]
    said = (
        "Features drawn at random, each at the dose alone. Interactions: the energy above an order in the Walsh basis of "
        "all sets, each push in or out with chance 1/2, of all but the mean."
    )
    drawn = Markup("")
    if bars:
        drawn = Markup('<figure class="panel">{}{}</figure>').format(
            dot_plot(
                bars, title="what the sum of single effects does not say", x_label="share of the change"
            ),
            legend([(kind, f"{part} part") for part, kind in _KINDS.items()], plain=True),
        )
    return section(
        "Sums",
        said,
        drawn,
        table(_SIZES, sizes, caption="sets of several sizes"),
        table(_ORDERS, found["joint_additivity"], caption="interactions by order"),
        table(_FINDINGS, found["joint_findings"], caption="growth, collapse and hypotheses"),
    )


_KINDS = {"odd": "pair", "even": "self"}


def _bar(row: Row) -> Bar:
    said = plural(row["n_prompts"], "prompt")
    return Bar(_KINDS[row["part"]], row["unexplained"], row["lo"], row["hi"], said)


def _interactions(found: Rows) -> Markup:
    rows = sorted(found["joint_pairs"], key=lambda r: (r["sae_i"], -r["even"]))
    said = (
        "Two features at once. odd, even: length of the interaction of logits to that of the sum. y: the log-odds of the "
        "first feature's tokens, nats, on the confirm prompts; second order is the Hessian's word for its even part on the "
        "same prompts, forecast that of the others."
    )
    return section("Pairs", said, table(_PAIRS, rows[:SHOWN], caption=_some(rows)))


def _layers(found: Rows) -> Markup:
    rows = found["joint_layers"]
    if not rows:
        return Markup("")
    said = (
        "One feature at a site, another at a later one. Frozen: the later coordinate is held against what the earlier push "
        "does to it. Survives: how much of the push is found along itself at the later site."
    )
    return section("Across layers", said, table(_LAYERS, rows[:SHOWN], caption=_some(rows)))


def _some(rows: Sequence[Row]) -> str:
    return plural(len(rows), "pair") + (f"; the first {SHOWN}" if len(rows) > SHOWN else "")


def _plan(found: Rows, plan: int) -> Markup:
    mine = {
        name: [r for r in found[name] if r["plan"] == plan]
        for name in ("plans", "plan_doses", "plan_effects")
    }
    wanted = [r for r in mine["plan_effects"] if (r["arm"], r["role"]) == ("planned", "wanted")]
    asked = "; ".join(f"{visible(r['name'])} {number(r['asked'], sign=True)} nats" for r in wanted)
    planned = {
        name: [r for r in mine[name] if r["arm"] == "planned"] for name in ("plan_doses", "plan_effects")
    }
    return section(
        f"Plan {plan}",
        f"Wanted: {asked}. Made on the select prompts, measured on the confirm prompts.",
        table(_PLANS, mine["plans"], caption="ways to the same"),
        table(_EFFECTS, planned["plan_effects"], caption="effects of the plan"),
        table(_DOSES, planned["plan_doses"], caption="its pushes"),
    )
