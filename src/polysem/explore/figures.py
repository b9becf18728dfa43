"""The figures of the views: those of the report, of the same tables and to the same bytes, as pieces of HTML.

The page adopts them as nodes (no string ever becomes HTML there) and adds what a pointer does; the export holds them as files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.errors import StoreError
from polysem.explore.book import Book
from polysem.report import cards, charts, compare, page, panels, side_effects, transfer_section, words
from polysem.report.heatmap import COVERED, HeatCell, heat_map, ranges
from polysem.report.html import Column, Figure, Rows, chapter_of, table
from polysem.report.source import Run, where
from polysem.report.svg import tick_text
from polysem.report.text import count, number, plural, visible
from polysem.store.tables import STAGES


def maps(book: Book) -> Iterator[Figure]:
    """The map of every SAE."""
    pairs = book.table("pairs", columns=("sae", "interference"))
    yield from panels.maps(book.table("density"), book.table("spectrum"), pairs, book.study.pairs)


def lines(book: Book) -> Iterator[Figure]:
    """Of every SAE, how interference and gloss similarity are spread over all pairs, for one pair to be marked on them."""
    density, spectrum = book.table("density"), book.table("spectrum")
    for sae in sorted(set(density["sae"].to_pylist())):
        mine, name = where(density, sae=sae), visible(sae)
        bounds = panels.chance(spectrum, sae)
        for axis, bands, said in (
            ("interference", bounds, f" Shaded: {100 * COVERED:g} % of random directions."),
            ("similarity", [], ""),
        ):
            keys = [f"{axis}_lo", f"{axis}_hi"]
            summed = mine.group_by(keys, use_threads=False).aggregate([("count", "sum")]).sort_by(keys[0])
            bars = [tuple(r[k] for k in (*keys, "count_sum")) for r in summed.to_pylist()]
            title = f"{axis.capitalize()} of all pairs"
            drawing = charts.against(bars, bands, title=title, told=f"all pairs of {name}")
            caption = f"Bars: all pairs of the SAE (log height).{said}"
            yield Figure(title, drawing, caption, of=f"{axis}/{sae}")


def predicted(book: Book) -> Iterator[Figure]:
    """All ordered pairs of every SAE by interference and the effect that the atlas predicts, in decades on both sides of 0."""
    table = where(book.table("atlas_density"), axis="interference")
    for sae in sorted(set(table["sae"].to_pylist())):
        rows = where(table, sae=sae).to_pylist()
        edges = sorted({abs(r[k]) for r in rows for k in ("effect_lo", "effect_hi")} - {0.0})
        least = edges[0]

        def at(v: float, least: float = least) -> float:
            return 0.0 if abs(v) < least / 2 else float(np.sign(v) * (1 + np.log10(abs(v) / least)))

        cells = [
            HeatCell(at(r["effect_lo"]), at(r["effect_hi"]), r["cosine_lo"], r["cosine_hi"], r["count"])
            for r in rows
        ]
        # Every second decade from the largest down: more labels would touch.
        powers = range(
            int(np.floor(np.log10(edges[-1]) + 1e-9)), int(np.ceil(np.log10(least) - 1e-9)) - 1, -2
        )
        decades = [10.0**power for power in powers]
        ticks = {0.0: "0"} | {at(s * d): tick_text(s * d) for d in decades for s in (1, -1)}
        x, y = ranges(cells)
        n = sum(c.n_pairs for c in cells)
        drawing = heat_map(
            cells,
            title=f"All ordered pairs of {visible(sae)}",
            told=f"{plural(n, 'ordered pair')} by interference and predicted effect",
            x=("interference (cosine of directions)", x),
            y=("predicted effect (nats per norm)", y),
            most=max(c.n_pairs for c in cells),
            y_ticks={v: text for v, text in ticks.items() if y[0] <= v <= y[1]},
        )
        caption = f"{plural(n, 'ordered pair')}. Effects in decades on both sides of zero; the outermost cells hold what is beyond."
        yield Figure(visible(sae), drawing, caption, of=sae)


def side_by_side(book: Book) -> Iterator[Any]:
    """The SAEs of the run beside each other, and another run beside it where one was named."""
    pairs = book.table("pairs", columns=("sae", "interference", "is_duplicate", "is_dense"))
    spectrum = book.table("spectrum", columns=("sae", "d_in", "d_eff", "mean_norm"))
    features = book.table("features", columns=("sae", "gloss", "density"))
    rows = []
    for sae in sorted(set(features["sae"].to_pylist())):
        mine, own = where(features, sae=sae), where(pairs, sae=sae)
        flagged = pc.sum(pc.or_(own["is_duplicate"], own["is_dense"])).as_py() or 0
        largest = pc.max(pc.abs(own["interference"])).as_py()
        facts = next(iter(where(spectrum, sae=sae).slice(0, 1).to_pylist()), {})
        counts = {"sae": sae, "n": mine.num_rows, "glossed": mine.num_rows - mine["gloss"].null_count}
        rows.append(
            counts
            | {"listed": own.num_rows - flagged, "flagged": flagged, "largest": largest}
            | {"density": pc.mean(mine["density"]).as_py(), "d_in": None, "d_eff": None, "mean_norm": None}
            | facts
        )
    columns: tuple[Column, ...] = (
        ("SAE", "sae"),
        ("features", lambda r: count(r["n"])),
        ("with a gloss", lambda r: count(r["glossed"])),
        ("mean density", "density"),
        ("pairs listed", lambda r: count(r["listed"])),
        ("flagged besides", lambda r: count(r["flagged"])),
        ("largest |interference|", "largest"),
        ("dimensions", lambda r: count(r["d_in"])),
        ("effective", "d_eff"),
        ("norm of the mean direction", "mean_norm"),
    )
    yield table(columns, rows, caption="the SAEs of this run")
    by_sae = [f for locus in panels.loci(book) if (f := panels.by_sae(locus))]
    yield Markup('<div class="figures">{}</div>').format(Markup("").join([*maps(book), *by_sae]))
    if book.against is not None:
        yield Markup('<section class="part">{}</section>').format(
            compare.body(compare.compare(Run.open(book.folder), Run.open(book.against)))
        )


def _stage(book: Book, stage: str) -> Iterator[Markup]:
    """The page of a stage beside the study's, where it has been made."""
    rows = _rows(book, stage)
    if any(rows.values()):
        yield Markup('<section class="part">{}</section>').format(chapter_of(stage, rows).body)


def _rows(book: Book, stage: str) -> Rows:
    return book.once(
        f"rows of {stage}",
        lambda: {schema.name: book.table(schema.name).to_pylist() for schema in STAGES[stage]},
    )


SECTIONS: Mapping[str, Callable[[Book], Iterable[Any]]] = {
    "maps": maps,
    "lines": lines,
    "compare": side_by_side,
    "predicted": predicted,
    "results": lambda book: [Markup(page.results(book))],
    "presets": lambda book: [Markup(page.presets(book))],
    **{name: partial(_stage, stage=name) for name in ("side-effects", "joint", "layers")},
    "transfer": lambda book: (
        [transfer_section.page(_rows(book, "transfer"), switched=True).body]
        if book.has("transfer_effects")
        else []
    ),
}
"""name -> its figures, of those that are the same for every visitor"""


def section(book: Book, name: str) -> str:
    """Figures that are the same for every visitor, as HTML. Raises StoreError if there are none of this name."""
    if name not in SECTIONS:
        raise StoreError(f"there are no figures {name!r}; there are {', '.join(SECTIONS)}")
    return book.once(f"figures {name}", lambda: _together(SECTIONS[name](book)))


def measured(book: Book) -> list[tuple[str, int, int]]:
    """Every pair that was steered or taken apart: there are figures of it."""

    def found() -> list[tuple[str, int, int]]:
        pairs: set[tuple[str, int, int]] = set()
        for name in ("pair_effects", "decomposition"):
            columns = ["sae", "source", "target"]
            table = book.table(name, columns=[*columns, "relation"] if name == "pair_effects" else columns)
            mine = where(table, relation="pair") if name == "pair_effects" else table
            rows = mine.select(columns).group_by(columns).aggregate([]).to_pylist()
            ends = ((r["sae"], r["source"], r["target"]) for r in rows)
            pairs |= {(sae, min(a, b), max(a, b)) for sae, a, b in ends}
        return sorted(pairs)

    return book.once("measured pairs", found)


def of_pair(book: Book, sae: str, i: int, j: int) -> str:
    """What steering along one of two features did to the other, and what the effect is made of."""
    loci = book.once("loci of figures", lambda: panels.loci(book))
    level = book.study.effects.level
    one = pc.field("sae") == sae
    ends = pc.field("source").isin([i, j]) & pc.field("target").isin([i, j])
    response = book.table("response", where=one & ends)
    drawn, _ = cards.curves(loci, [(sae, i, j)], level=level, response=response)
    apart = book.table("decomposition", where=one & ends).sort_by("target").to_pylist()
    return _together([*drawn, *(f for row in apart if (f := _apart(row)))])


def _apart(row: Mapping[str, Any]) -> Figure | None:
    """One effect taken apart in three ways; nothing where there is no total."""
    if row["total"] is None:
        return None
    bars = [
        [(said, float(row[name])) for name, said in split.items() if row[name] is not None]
        for split in words.SPLITS.values()
    ]
    title = f"{row['source']} steered, {row['target']} read: {words.tokens(row['token_set'])}"
    drawing = charts.stacked(
        [bar for bar in bars if bar],
        title=title,
        whole=row["total"],
        shown=lambda v: number(v, digits=2, sign=True),
    )
    clean = row["clean"]
    caption = (
        f"Three ways of taking the same effect apart. Dotted: the whole, {number(row['total'], sign=True)} nats at dose "
        f"{row['dose']:g}, over {plural(row['n_prompts'], 'prompt')}. "
    )
    caption += (
        "No target token is left without those of the source."
        if clean is None
        else f"Without tokens that are also the source's: {number(clean, sign=True)}."
    )
    return Figure(title, drawing, caption, of="apart")


def of_features(book: Book, sae: str, numbers: Sequence[int]) -> str:
    """How strongly some features of an SAE fire in their stored contexts, and the steering cards of those that were judged."""
    rows = _rows(book, "side-effects")
    judged = [r for r in rows["directions"] if r["sae"] == sae and r["feature"] in numbers]
    return _together(
        [
            *cards.activations(book, {(sae, n) for n in numbers}, sae=sae),
            *(
                Markup('<section class="steering-card part" data-of="{}">{}</section>').format(
                    f"{sae}/{one['feature']}", side_effects.card(rows, one)
                )
                for one in judged
            ),
        ]
    )


def _together(found: Iterable[Any]) -> str:
    return str(Markup("\n").join(found))
