"""The page of `polysem side-effects`: a steering card for every direction, then forecasts and the screen."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from markupsafe import Markup

from polysem.report.charts import Bar, dot_plot, legend
from polysem.report.html import NOTE, Chapter, Column, Row, Rows, interval, probability, section, table
from polysem.report.text import fixed, number, plural, visible
from polysem.vocabulary import SIDE_EFFECTS

CARDS, REPORTED = 40, 3
"""directions that get a card, on the page and in the study's report; the tables hold all"""
KINDS = {
    "category": "Categories of words (log-odds, nats)",
    "tokens": "Token sets of features (log-odds, nats)",
    "feature": "Features of the readout (activation × decoder norm)",
}
_DRAWN = 10
"""things of a kind in a chart"""
_MEASURES: tuple[Column, ...] = (
    ("", lambda r: _label(r["measure"])),
    ("measured", lambda r: interval(r, "value")),
    ("forecast", "forecast"),
    ("isotropic, 5 to 95 %", lambda r: _range(r["null_lo"], r["null_hi"])),
    ("p", probability),
    ("unit", lambda r: SIDE_EFFECTS[r["measure"]].unit),
)
_MOVED: tuple[Column, ...] = (
    "name",
    ("measured", lambda r: interval(r, "value")),
    ("forecast", "forecast"),
    ("isotropic, 95 %", "null_hi"),
    ("beyond it", lambda r: "yes" if r["beyond"] else "no"),
)
_CLEANER: tuple[Column, ...] = (
    *("sae", "feature", "gloss"),
    ("cleanliness on these tokens", "cleanliness"),
    ("reach, token sets", "reach_sets"),
    "cosine",
)
_REPAIR: tuple[Column, ...] = (
    ("", lambda r: _label(r["measure"])),
    *("before", "after"),
    ("difference", lambda r: interval(r, "difference")),
)
_FORECAST: tuple[Column, ...] = (
    *("sae", "outcome", "predictors"),
    ("Spearman", lambda r: interval(r, "spearman")),
    ("ceiling", "ceiling"),
    ("p", probability),
    ("p, equivalent", lambda r: probability(r, "p_equivalent")),
    ("features", "n_features"),
    NOTE,
)
_SCREEN: tuple[Column, ...] = (
    *("sae", "outcome", "dirtiest", "cleanest"),
    ("difference", lambda r: interval(r, "difference")),
    ("p", probability),
    ("left on target", "on_difference"),
    ("pairs", "n_pairs"),
    ("prompts", "n_prompts"),
)
_LINEAR: tuple[Column, ...] = (
    *("sae", "feature", "cleanliness", "percentile"),
    ("on target", "on_target"),
    *("kl", "stability"),
    ("reach, token sets", "reach_sets"),
)


def page(found: Rows, *, cards: int = CARDS) -> Chapter:
    """What the stage has to show: the first cards, forecasts and all features."""
    n = len(found["directions"])
    said = f"{plural(n, 'direction')} judged." + (f" Cards of the first {cards}." if n > cards else "")
    lead = f"What does steering move besides its target, and which direction does the same with less? {said}"
    parts = [card(found, one) for one in found["directions"][:cards]]
    if found["forecasts"]:
        parts.append(_forecasts(found))
    if found["side_effects_linear"]:
        parts.append(_all_features(found["side_effects_linear"]))
    return Chapter("Side effects of steering", lead, Markup("").join(parts))


def card(tables: Rows, one: Row) -> Markup:
    """The steering card of one row of DIRECTIONS."""
    mine = {
        name: [r for r in rows if r.get("direction") == one["direction"]] for name, rows in tables.items()
    }
    order = list(SIDE_EFFECTS)
    measures = sorted(mine["side_effects"], key=lambda r: order.index(r["measure"]))
    parts = [
        Markup("<h2>{}</h2><p>{}</p>").format(visible(one["direction"]), _about(one)),
        table(_MEASURES, [r for r in measures if r["value"] is not None], caption="what it does"),
    ]
    for kind, words in KINDS.items():
        rows = sorted((r for r in mine["side_effects_moved"] if r["kind"] == kind), key=lambda r: r["rank"])
        if not rows:
            continue
        parts.append(Markup("<h3>{}</h3>").format(words))
        if kind != "feature":
            parts.append(_chart(rows[:_DRAWN], words))
        parts.append(table(_MOVED, rows, caption="chosen on one half of the prompts, measured on the other"))
    if mine["cleaner"]:
        parts.append(Markup("<h3>Cleaner ways to the same tokens</h3>"))
        parts.append(table(_CLEANER, mine["cleaner"], caption="features of the dictionary, by gradient"))
    if mine["repairs"]:
        first = mine["repairs"][0]
        said = (
            f"The direction with least collateral for the same tokens, {plural(first['n_protected'], 'set')} protected; "
            f"cosine with the original {number(first['cosine'])}. Both at the same KL, on prompts that decided nothing."
        )
        parts.append(Markup("<h3>Repaired</h3><p>{}</p>").format(said))
        parts.append(table(_REPAIR, mine["repairs"], caption="before and after"))
    return Markup("<section>{}</section>").format(Markup("").join(parts))


def cards(tables: Mapping[str, pa.Table]) -> Markup:
    """The cards of a session in Python, as a page of a notebook shows them."""
    rows = {name: one.to_pylist() for name, one in tables.items()}
    return Markup("").join(card(rows, one) for one in rows["directions"])


def _about(one: Row) -> str:
    unit = "nats of KL" if one["dose_unit"] == "kl" else "times the vector"
    parts = [
        f"{one['kind']} at {one['site']}, positions {one['positions']}, {number(one['dose'])} {unit}",
        f"towards {visible(', '.join(one['tokens'][:12]))} ({_FROM[one['tokens_from']]})"
        if one["tokens"]
        else "",
        f"gloss: {visible(one['gloss'])}" if one["gloss"] else "",
        f"coefficient {number(one['coefficient'])} of a vector of length {number(one['length'])}",
        f"readout {one['readout']}" if one["readout"] else "",
        f"dose reached on {one['n_reached']} of {plural(one['n_prompts'], 'prompt')}",
        f"cleaner than {fixed(100 * one['percentile'], places=0)} % of the dictionary's features"
        if one["percentile"] is not None
        else "",
    ]
    return "; ".join(part for part in parts if part) + "."


_FROM = {"feature": "the feature's own", "asked": "as asked", "direct": "what it writes by itself"}


def _chart(rows: Sequence[Row], title: str) -> Markup:
    drawn = dot_plot([bars(row) for row in rows], title=title, x_label="change of log-odds (nats)")
    return Markup('<figure class="panel">{}{}</figure>').format(drawn, legend(BARS, plain=True))


BARS = [("pair", "measured"), ("self", "forecast by gradient")]


def bars(row: Row) -> tuple[str, list[Bar]]:
    """A thing that moved, and BARS of it."""
    found = [Bar("pair", row["value"], row["lo"], row["hi"], plural(row["n_prompts"], "prompt"))]
    if row["forecast"] is not None:
        found.append(Bar("self", row["forecast"], None, None, "forecast"))
    return visible(row["name"], limit=28), found


def _forecasts(found: Rows) -> Markup:
    said = (
        "From weights, corpus and gradients of other prompts, held out by feature. The ceiling is the root of the label's "
        "reliability, which two halves of its prompts tell. "
        "A difference is of two correlations; crowding is a partial correlation with an equivalence test."
    )
    parts = [
        Markup("<h2>Forecast</h2><p>{}</p>").format(said),
        table(_FORECAST, found["forecasts"], caption="forecasts"),
    ]
    if found["screened"]:
        screen = "The ends of the forecast, paired on their effect on target, on prompts that made no label."
        parts.append(Markup("<h2>Screen</h2><p>{}</p>").format(screen))
        parts.append(table(_SCREEN, found["screened"], caption="dirtiest minus cleanest tenth"))
    return Markup("<section>{}</section>").format(Markup("").join(parts))


def _all_features(rows: Sequence[Row]) -> Markup:
    known = sorted((r for r in rows if r["cleanliness"] is not None), key=lambda r: -r["cleanliness"])
    shown = [*known[:10], *known[-10:]] if len(known) > 20 else known
    said = f"{plural(len(rows), 'feature')} by gradient; the cleanest and the least clean."
    return section("All features", said, table(_LINEAR, shown, caption="by cleanliness on their own tokens"))


def _label(measure: str) -> str:
    return SIDE_EFFECTS[measure].label if measure in SIDE_EFFECTS else "protected sets, root mean square"


def _range(lo: float | None, hi: float | None) -> str:
    return "–" if lo is None or hi is None else f"{number(lo)} to {number(hi)}"
