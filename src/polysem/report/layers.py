"""The page of `polysem layers`: which dictionaries write to which, whether their weights act, and the edges one by one."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from polysem.report.html import NOTE, Chapter, Column, Row, Rows, ends, interval, rows_of, section, table
from polysem.report.text import fixed, number, plural, visible
from polysem.vocabulary_findings import LAYER_HYPOTHESES

EDGES, TOKENS = 60, 40
"""rows that the page shows; the tables hold all"""
_BLOCKS: tuple[Column, ...] = (
    *("source", "target", "norm"),
    ("features", lambda r: f"{r['n_i']} × {r['n_j']}"),
    ("rms weight", "rms"),
    ("closer than chance", lambda r: f"{r['n_strong']} pairs"),
    ("of them never co-fire", "strong_never"),
    ("of the largest 1 %", "top_never"),
    ("of all", "never"),
    ("tokens", "n_tokens"),
)
_FINDINGS: tuple[Column, ...] = (
    ("", "hypothesis"),
    "quantity",
    ("by, against", "by"),
    ("nats", lambda r: number(r["dose"]) if r["dose"] else ""),
    ("value", lambda r: interval(r, "value")),
    ("chance", lambda r: _range(r)),
    ("over", lambda r: plural(r["n"], r["over"].removesuffix("s"))),
    NOTE,
)
_EDGES: tuple[Column, ...] = (
    ("from", lambda r: _feature(r["i"], r["gloss_i"])),
    ("to", lambda r: _feature(r["j"], r["gloss_j"])),
    "weight",
    ("co-firing", lambda r: "never" if not r["co_tokens"] else f"{number(r['lift'])} × chance"),
    ("ERA", "era"),
    ("effectiveness, nats", "effectiveness"),
    ("helpfulness, nats", lambda r: interval(r, "saved")),
    ("pushed", "pushed"),
    ("by itself", "natural"),
    ("chosen by", "chosen"),
)
_TOKENS: tuple[Column, ...] = (
    *("source", "i"),
    ("token", lambda r: visible(r["token_str"])),
    "weight",
    ("effectiveness, nats", "effectiveness"),
    ("helpfulness, nats", lambda r: interval(r, "saved")),
    ("events", "n_events"),
)

_SPLICE: tuple[Column, ...] = (
    *("transcoders", "replaced", "clean", "spliced", "zeroed"),
    ends("cost, nats a token", "cost"),
    ends("recovered", "recovered"),
    ("tokens", "n_tokens"),
    ("", lambda r: r["why"] or ""),
)


def page(found: Rows) -> Chapter:
    """What the stage has to show."""
    blocks = [r for r in found["layer_blocks"] if r["why"] is None]
    lead = (
        "Features write where later features read. Do those weights act by themselves, or only when somebody steers? "
        f"{plural(len(blocks), 'pair')} of dictionaries."
    )
    parts = [
        _matrix(found["layer_blocks"]), _splice(found["layer_splice"]), *(_pair(found, block) for block in blocks),
        _tokens(found),
    ]  # fmt: skip
    return Chapter("Interference across layers", lead, Markup("").join(parts))


def splice_lines(out: Path) -> list[str]:
    """The splice test in words, a line for each set and place."""
    return [
        f"{r['transcoders']} in place of {r['replaced']}: "
        + (
            r["why"]
            or f"costs {interval(r, 'cost', 'cost_lo', 'cost_hi')} nats a token, recovers {interval(r, 'recovered', 'recovered_lo', 'recovered_hi')}"
        )
        for r in rows_of(out, "layers")["layer_splice"]
    ]


def _matrix(rows: Sequence[Row]) -> Markup:
    """Who writes, in rows; who reads, in columns: root mean square of weights, and what share never co-fires."""
    linked = {(r["source"], r["target"]): r for r in rows if r["why"] is None}
    sources, targets = (list(dict.fromkeys(pair[k] for pair in linked)) for k in (0, 1))
    columns: list[Column] = [
        ("writes ↓  reads →", "source"),
        *((target, lambda r, target=target: _cell(linked.get((r["source"], target)))) for target in targets),
    ]
    said = "Root mean square of virtual weights between features that fire; in brackets the share of pairs that never fire together."
    parts = [
        Markup("<h2>Layer by layer</h2><p>{}</p>").format(said),
        table(columns, [{"source": source} for source in sources], caption="weights between dictionaries"),
    ]
    left_out = [r for r in rows if r["why"] is not None]
    if left_out:
        reasons = sorted({r["why"] for r in left_out})
        parts.append(
            Markup("<p>{} without weights: {}.</p>").format(
                plural(len(left_out), "pair"), visible("; ".join(reasons))
            )
        )
    parts.append(table(_BLOCKS, list(linked.values()), caption="pairs of dictionaries"))
    return Markup("<section>{}</section>").format(Markup("").join(parts))


def _splice(rows: Sequence[Row]) -> Markup:
    if not rows:
        return Markup("")
    said = "Cross-entropy of text when transcoders stand for the model's own outputs: at every place at once, and at each alone."
    return section("MLPs replaced", said, table(_SPLICE, rows, caption="splice test"))


def _cell(row: Row | None) -> str:
    return "–" if row is None else f"{number(row['rms'])} ({fixed(100 * row['never'], places=0)} %)"


def _pair(found: Rows, block: Row) -> Markup:
    def mine(name: str) -> list[Row]:
        return [r for r in found[name] if (r["source"], r["target"]) == (block["source"], block["target"])]

    edges = sorted(mine("layer_edges"), key=lambda r: -(r["effectiveness"] or 0))
    parts = [
        Markup("<h2>{} → {}</h2>").format(visible(block["source"]), visible(block["target"])),
        _density(mine("layer_density")),
        _findings(mine("layer_findings")),
        table(
            _EDGES, edges[:EDGES], caption=f"edges by effectiveness, {min(EDGES, len(edges))} of {len(edges)}"
        ),
    ]
    return Markup("<section>{}</section>").format(Markup("").join(parts))


def _density(rows: Sequence[Row]) -> Markup:
    """Share of every bin of |weight| by co-firing."""
    bins = sorted({(r["weight_low"], r["weight_high"]) for r in rows})
    lifts = {
        r["lift_bin"]: (r["lift_low"], r["lift_high"]) for r in sorted(rows, key=lambda r: r["lift_bin"])
    }
    counts = {(r["weight_low"], r["lift_bin"]): r["n_pairs"] for r in rows}

    def share(row: Row, lift: int) -> str:
        total = sum(counts.get((row["low"], k), 0) for k in lifts)
        return fixed(100 * counts.get((row["low"], lift), 0) / total, places=1)

    columns: list[Column] = [
        ("|weight|, rms", lambda r: f"{number(r['low'])} to {number(r['high'])}"),
        *((_lift(edges), lambda r, k=k: share(r, k)) for k, edges in lifts.items()),
        ("pairs", lambda r: sum(counts.get((r["low"], k), 0) for k in lifts)),
    ]
    shown = [{"low": low, "high": high} for low, high in bins]
    return table(
        columns, shown, caption="per cent of pairs by co-firing over chance, within bins of |weight|"
    )


def _lift(edges: tuple[float | None, float | None]) -> str:
    low, high = edges
    if low is None:
        return "never"
    return f"{number(low)} and more" if high is None else f"{number(low)} to {number(high)}"


def _findings(rows: Sequence[Row]) -> Markup:
    parts = []
    for name, word in LAYER_HYPOTHESES.items():
        own = sorted(
            (r for r in rows if r["hypothesis"] == name), key=lambda r: (r["quantity"], r["dose"], r["by"])
        )
        if own:
            parts.append(Markup("<h3>{}: {}</h3><p>{}</p>").format(name, word.label, word.help))
            parts.append(table(_FINDINGS, own, caption=word.title))
    return Markup("").join(parts)


def _tokens(found: Rows) -> Markup:
    rows = sorted(found["layer_tokens"], key=lambda r: -r["effectiveness"])[:TOKENS]
    if not rows:
        return Markup("")
    said = "Direct edges from features to tokens, helpfulness in closed form; the most effective."
    shown = table(_TOKENS, rows, caption="edges to tokens")
    return section("Tokens", said, shown)


def _feature(number_: int, gloss: str | None) -> str:
    return f"{number_}: {gloss}" if gloss else f"{number_}"


def _range(row: Row) -> str:
    if row["null"] is None:
        return "–"
    return f"{number(row['null'])} [{number(row['null_lo'])}, {number(row['null_hi'])}]"
