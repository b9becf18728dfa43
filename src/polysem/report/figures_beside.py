"""Figures of results that are no study's: side effects, dictionaries compared, transfer; as `report.figures` draws its own."""

from collections.abc import Mapping
from typing import Any

from polysem.errors import ConfigError
from polysem.hierarchy.relations import by_interference
from polysem.report import charts
from polysem.report.charts import Bar
from polysem.report.figures import Picture, picture
from polysem.report.side_effects import BARS, bars
from polysem.report.text import number, plural, visible
from polysem.report.words import ARMS
from polysem.vocabulary_findings import KINSHIPS

_DRAWN = 8


def side_effects(result: Any, direction: str | None = None, *, kind: str = "category") -> Picture:
    """What steering along a direction moves, beside what its gradient forecast.

    Args:
        result: a SideEffects.
        direction: its name; None takes the first.
        kind: `category`, `tokens` (of features) or `feature` (of the readout).

    Raises:
        ConfigError: if there is no such direction, or nothing of the kind was looked at.
    """
    known = result.to_pandas("directions")["direction"].tolist()
    name = direction or next(iter(known), "")
    if name not in known:
        raise ConfigError(f"there is no direction {name!r}; expected one of {', '.join(known) or 'none'}")
    found = [r for r in result.tables()["side_effects_moved"].to_pylist() if r["direction"] == name]
    rows = sorted((r for r in found if r["kind"] == kind), key=lambda r: r["rank"])[:_DRAWN]
    if not rows:
        kinds = ", ".join(sorted({r["kind"] for r in found})) or "none"
        raise ConfigError(f"nothing of kind {kind!r} was looked at; expected one of {kinds}")
    title, x_label = f"What {name} moves", "change (log-odds in nats; features in activation)"
    drawing = charts.dot_plot([bars(row) for row in rows], title=title, x_label=x_label)
    return picture(title, drawing, "Chosen on one half of the prompts, measured on the other.", BARS)


def replicates(result: Any, number_of: int = 0) -> Picture:
    """Do interfering pairs of one dictionary come back in the other?

    Args:
        result: a Replicates.
        number_of: which two dictionaries, as `number` in its tables.

    Raises:
        ConfigError: if there are no such two, or they have too few matched features.
    """
    rows = [r for r in result.tables()["survival"].to_pylist() if r["number"] == number_of]
    if not rows:
        raise ConfigError(
            f"nothing is known of dictionaries number {number_of}; expected one of {len(result.pairs)}"
        )
    title = "Pairs of matched features that stay in their bin of interference"
    bars = [
        (
            f"{row['matched']}, {row['low']:.1f} to {row['high']:.1f}",
            [
                Bar("pair", row["same"], None, None, plural(row["n"], "pair")),
                Bar("random_direction", row["chance"], row["lo"], row["hi"], "regression to the mean"),
            ],
        )
        for row in rows
    ]
    drawing = charts.dot_plot(bars, title=title, x_label="share of pairs")
    two = result.tables()["replicates"].to_pylist()[number_of]
    said = f"{two['first']} and {two['second']}: PW-MCC {number(two['pw_mcc'])}, turned at random {number(two['turned'])}."
    return picture(title, drawing, said, [("pair", "measured"), ("random_direction", "chance")])


def transfer(result: Any, contrast: str = "logodds") -> Picture:
    """What strings of each arm do to the categories, against matched reference pools.

    Args:
        result: a TransferFound.
        contrast: as in table `transfer_effects`.

    Raises:
        ConfigError: if there is no estimate of it.
    """
    rows = [
        r
        for r in result.tables()["transfer_effects"].to_pylist()
        if r["contrast"] == contrast and r["estimate"] is not None and ARMS.get(r["arm"], ("",))[0]
    ]
    if not rows:
        raise ConfigError(f"no arm has an estimate of {contrast!r}: there is nothing to draw")
    places = dict.fromkeys((r["target"], r["template"], r["position"]) for r in rows)
    first = next(iter(places))
    here = [r for r in rows if (r["target"], r["template"], r["position"]) == first]
    title = f"What the strings of each arm do to {first[0]}"
    bars = [
        (visible(category, limit=18), [_arm(r) for r in here if r["category"] == category])
        for category in dict.fromkeys(r["category"] for r in here)
    ]
    drawing = charts.dot_plot(bars, title=title, x_label="difference from the reference pools, nats")
    arms = {ARMS[r["arm"]][0]: ARMS[r["arm"]][1] for r in here}
    more = f" The first of {plural(len(places), 'place')}." if len(places) > 1 else ""
    return picture(title, drawing, f"Template {first[1]}, position {first[2]}.{more}", list(arms.items()))


def _arm(row: Mapping[str, Any]) -> Bar:
    return Bar(ARMS[row["arm"]][0], row["estimate"], row["lo"], row["hi"], ARMS[row["arm"]][1])


def kinship(result: Any) -> Picture:
    """Of pairs of features by interference, how many have a relation that is more than closeness.

    Args:
        result: a Kinship.

    Raises:
        ConfigError: if no pair was looked at.
    """
    counts = by_interference(result.relations)
    bars = []
    for row in counts:
        n = sum(int(row[name]) for name in KINSHIPS)
        if n:
            share = 100 * (1 - int(row["unrelated"]) / n)
            bars.append((str(row["bin"]), [Bar("pair", share, None, None, plural(n, "pair"))]))
    if not bars:
        raise ConfigError("no pair of features is close: none was looked at")
    title = "Pairs that are duplicates, parts or opposites"
    return picture(title, charts.dot_plot(bars, title=title, x_label="share with a relation (%)"), "", [])
