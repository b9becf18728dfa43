"""The report's figures for results in memory: each stands alone as an SVG file, follows light and dark, and is an image to a
notebook, so that neither's styles reach the other."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.errors import ConfigError
from polysem.report import cards, charts, html, panels, words
from polysem.report.source import Tables
from polysem.report.text import plural
from polysem.store import io
from polysem.store.tables import HOMES
from polysem.vocabulary import RELATIONS

_BINS = 24


@dataclass(frozen=True)
class Picture:
    """A title that says what is seen, the drawing, and what to know when looking at it."""

    title: str
    svg: str
    caption: str

    def __repr__(self) -> str:
        return f"Picture({self.title!r}; .save('figure.svg') writes it)"

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.svg.encode()).decode()
        return (
            f'<figure style="margin:0;max-width:640px"><b>{escape(self.title)}</b>'
            f'<img style="width:100%" alt="{escape(self.title)}" src="data:image/svg+xml;base64,{data}"/>'
            f"<figcaption><small>{escape(self.caption)}</small></figcaption></figure>"
        )

    def save(self, path: str | Path) -> Path:
        """Write the SVG; gives its path.

        Raises:
            ConfigError: if the name does not end in .svg.
        """
        to = Path(path)
        if to.suffix != ".svg":
            raise ConfigError(f"{to} ends in {to.suffix or 'nothing'}; expected .svg")
        io.write_text(to, self.svg)
        return to


@dataclass(frozen=True)
class _Held:
    """Tables of a session where the panels expect those of a run."""

    tables: Mapping[str, pa.Table]
    study: Any

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        if name not in self.tables:
            return HOMES[name][1].empty(columns)
        found = self.tables[name] if where is None else self.tables[name].filter(where)
        return found if columns is None else found.select(columns)


def features(result: Any) -> Picture:
    """How often the features of a FeatureTable fire."""
    density = pc.drop_null(result.features["density"]).to_numpy()
    seen = np.log10(density[density > 0])
    if not len(seen):
        raise ConfigError("no feature fired on the corpus, or its density is not known: nothing to draw")
    counts, edges = np.histogram(seen, bins=_BINS)
    title = f"How often {plural(len(density), 'feature')} fire"
    drawing = charts.histogram(
        edges.tolist(),
        counts.tolist(),
        title=title,
        x_label="log10 of the share of tokens",
        y_label="features",
    )
    return picture(title, drawing, f"{plural(len(density) - len(seen), 'feature')} never fired.")


def pairs(result: Any) -> Picture:
    """The map of an SAE's pairs: gloss similarity against interference, with chance."""
    drawn = next(panels.maps(result.density, result.spectrum, result.pairs, result.config), None)
    if drawn is None:
        raise ConfigError("no two features have a gloss: there is no map to draw")
    return picture(drawn.title, drawn.drawing, drawn.caption)


def planned(result: Any) -> Picture:
    """What the trials of a plan are."""
    return _shares(result.plan["relation"], "What is planned", "trials")


def trials(result: Any) -> Picture:
    """What became of the trials."""
    return _shares(result.trials["status"], "What became of the trials", "trials")


def _shares(column: pa.ChunkedArray, title: str, things: str) -> Picture:
    if not len(column):
        raise ConfigError(f"there are no {things}: nothing to draw")
    counts = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
    named = list(words.in_order(RELATIONS, counts)) or sorted(counts)
    bars = [[(f"{_label(name)}:", counts[name] / len(column))] for name in named]
    drawing = charts.stacked(bars, title=title)
    return picture(title, drawing, f"{plural(len(column), 'trial')}.")


def _label(name: str) -> str:
    return words.relation(name).label if name in RELATIONS else name


def estimates(result: Any, **choices: Any) -> Picture:
    """As `study`, of estimates in memory."""
    if result.planned is None:
        raise ConfigError("these estimates do not know their plan", hint="estimate(run_trials(plan, model))")
    held = result.tables() | {"plan": result.planned.plan}
    return study(_Held(held, result.planned.study), **choices)


def study(
    run: Tables,
    kind: str = "interference",
    *,
    pair: tuple[int, int] | None = None,
    tokens: str | None = None,
    sae: str | None = None,
    locus: str | None = None,
) -> Picture:
    """What a study found.

    Args:
        run: its tables.
        kind: `interference`: effect against interference, every pair and control; `relations`: mean effects beside the
            controls; `dose`: the dose-response.
        pair: one pair (i, j) instead: its effect over the dose, with intervals, over the noise floor of a control.
        tokens: whose tokens are read: `in` or `out`; None takes the first that there is.
        sae: label of the pair's SAE; needed where there are several.
        locus: where it was steered; None takes the first.

    Raises:
        ConfigError: if there is nothing of this kind, or a choice is unknown.
    """
    found = {own.name: own for own in panels.loci(run)}
    if not found or (locus is not None and locus not in found):
        raise ConfigError(
            f"no effects at locus {locus or '(any)'}; there are some at {', '.join(found) or 'none'}"
        )
    own = found[locus] if locus else next(iter(found.values()))
    wanted = tokens or next(iter(own.token_sets), "")
    if wanted not in own.token_sets:
        raise ConfigError(
            f"no effects on tokens {wanted!r}; there are some on {', '.join(own.token_sets) or 'none'}"
        )
    if pair is not None:
        return _pair(run, own, pair, tokens=wanted, sae=sae)
    match kind:
        case "interference":
            one = dict(zip(own.token_sets, panels.scatters(own, run.study), strict=False)).get(wanted)
        case "relations":
            one = panels.by_relation(own, run.study)
        case "dose":
            read = f"Dose-response: {words.tokens(wanted)}"
            one = next((f for f in panels.doses(own, run.study) if f.title == read), None)
        case _:
            raise ConfigError(f"kind is {kind!r}; expected one of interference, relations, dose")
    if one is None:
        raise ConfigError(f"there is nothing to draw of kind {kind!r}")
    return picture(
        one.title, one.drawing, one.caption, panels.scatter_legend(own) if kind == "interference" else ()
    )


def _pair(
    run: Tables, locus: panels.LocusSection, pair: tuple[int, int], *, tokens: str, sae: str | None
) -> Picture:
    i, j = sorted(pair)
    measured = sorted(panels.measured(locus))
    mine = [key for key in measured if key[1:] == (i, j) and sae in (None, key[0])]
    if not mine:
        some = ", ".join(f"({a}, {b})" for _, a, b in measured[:5])
        raise ConfigError(f"pair ({i}, {j}) was not steered; among those that were: {some or 'none'}")
    level, response = run.study.effects.level, run.table("response")
    drawn, _ = cards.curves([locus], mine[:1], level=level, response=response)
    one = next((d for d in drawn if d.title.endswith(words.tokens(tokens))), drawn[0])
    return picture(f"Features {i} and {j}, {one.title}", one.drawing, one.caption, one.keys)


def picture(title: str, drawing: Markup, caption: str, keys: Sequence[tuple[str, str]] = ()) -> Picture:
    """A drawing with its own style, as a file needs it."""
    opened, _, inside = str(drawing).partition(">")
    whole = f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{_style()}</style>{inside}'
    marks = ". ".join(
        f"{words.relation(kind).mark.shape}: {said}" if kind in RELATIONS else said for kind, said in keys
    )
    return Picture(title, whole, " ".join(part for part in (caption, marks) if part))


@cache
def _style() -> str:
    return f"svg{{background:var(--card);font-family:system-ui,sans-serif}}\n{html.shared('figures.css')}"
