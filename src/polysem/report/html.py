"""HTML that is not a template: the assets and the policy of a page, pages of one part, tables of untrusted text."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from polysem.report import colours, text
from polysem.report.charts import legend
from polysem.store import io
from polysem.store.run import RunFolder
from polysem.store.stages import REGISTRY, StageName
from polysem.store.tables import HOMES

MISSING = "–"
LONG = 48
"""characters beyond which the cells of a column are texts that wrap"""
Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""of several tables, by name"""
Column = str | tuple[str, str | Callable[[Row], object]]
"""a head, and the column of the row or what makes the cell of it; a head alone is the column's name too"""


SHARED = ("figures.css", "parts.css", "figures.js")
"""assets that the explorer has, too; on the report's page they stand before its own"""


@dataclass(frozen=True)
class Figure:
    """A title that says what is seen, the drawing, and what to know when looking at it. In a page it stands as HTML, the
    same in report and explorer."""

    title: str
    drawing: Markup
    caption: str
    keys: Sequence[tuple[str, str]] = ()
    """of the marks: (kind, words)"""
    of: str = ""
    """what it is of, where a script looks for it"""

    def __html__(self) -> Markup:
        readout = Markup('<p class="readout" aria-hidden="true"></p>') if "data-cells" in self.drawing else ""
        return Markup(
            '<figure class="panel" data-of="{}"><h4>{}</h4>{}{}<figcaption>{}{}</figcaption></figure>'
        ).format(
            self.of,
            self.title,
            self.drawing,
            readout,
            legend(self.keys, plain=True) if self.keys else "",
            self.caption,
        )


def asset(name: str) -> Markup:
    """A style sheet or script of this package with what it builds upon; it is ours and needs no escaping."""
    kind = name[name.rindex(".") :]
    parts = (*(part for part in SHARED if part.endswith(kind)), name)
    # A page of its own holds inline what the explorer imports.
    return Markup("".join(shared(part) for part in dict.fromkeys(parts)).replace("\nexport ", "\n"))


def shared(name: str) -> str:
    """One file of those; the first style sheet brings the colours along."""
    found = files("polysem.report").joinpath("templates", name).read_text(encoding="utf-8")
    return colours.style() + found if name == SHARED[0] else found


def policy(style: str, script: str) -> str:
    """Content security policy: this style, this script, nothing else from anywhere."""
    parts = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    for kind, content in (("style-src", style), ("script-src", script)):
        parts[kind] = f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    return "; ".join(f"{key} {value}" for key, value in parts.items())


def page(title: str, lead: str, body: Markup) -> str:
    """A page of one part, in the style of the report; it loads and sends nothing."""
    style = asset("report.css")
    whole = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{title}</title><style>{style}</style></head>"
        '<body><header><div class="wrap"><p class="kicker">polysem report</p><h1>{title}</h1>'
        '<p class="lead">{lead}</p></div></header>'
        '<main class="wrap part">{body}</main></body></html>\n'
    )
    return str(whole.format(policy=policy(style, ""), style=style, title=title, lead=lead, body=body))


@dataclass(frozen=True)
class Chapter:
    """What a stage has to show: a page of its own, and a section of others. Its record names what makes it (`Stage.page`)."""

    title: str
    lead: str
    body: Markup

    def section(self, name: str) -> Markup:
        """As a section of another page."""
        return Markup('<section id="{}" class="part"><h2>{}</h2><p>{}</p>{}</section>').format(
            name, self.title, self.lead, self.body
        )


def write_page(out: Path, stage: StageName) -> Path:
    """Write the page of a stage into its run folder as STAGE.html; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if the stage was not made, or a table is damaged.
    """
    path, shown = out / f"{stage}.html", chapter_of(stage, rows_of(out, stage))
    io.write_text(path, page(shown.title, shown.lead, shown.body))
    return path


def chapter_of(stage: StageName, found: Rows) -> Chapter:
    """What a stage has to show, of the rows of its tables."""
    return REGISTRY[stage].load("page")(found)


def rows_of(out: Path, stage: StageName) -> Rows:
    """The rows of a stage's tables, by the names of these. Raises StoreError as `write_page`."""
    return {name: table.to_pylist() for name, table in RunFolder(out).tables(stage).items()}


def section(title: str, said: str, *parts: Markup) -> Markup:
    """A section of a page of one part."""
    return Markup("<section><h2>{}</h2><p>{}</p>{}</section>").format(title, said, Markup("").join(parts))


def head(label: str, table: str, column: str) -> Markup:
    """A column head that says on request what the column of a stage's table holds, and in which unit."""
    found = next(c for c in HOMES[table][1].columns if c.name == column)
    said = found.meaning + (f" ({found.unit})" if found.unit and found.unit != "unit" else "")
    return Markup('<abbr title="{}">{}</abbr>').format(said, label) if found.meaning else escape(label)


_THOUSANDS = re.compile(r"(?<=\d)\u202f(?=\d{3})")


def _written(cell: str) -> str:
    """A text made visible; the narrow spaces of `text.count` between thousands stay."""
    return "\u202f".join(map(text.visible, _THOUSANDS.split(cell)))


def table(columns: Sequence[Column], rows: Iterable[Row], *, caption: str) -> Markup:
    """A table that scrolls by itself; every cell that is no markup is made visible and escaped. Columns of words stand left, of
    numbers right, and long texts wrap. A number is shown to three digits, and a dash where there is none."""
    pairs = [(c, c) if isinstance(c, str) else c for c in columns]
    body = [[_cell(r[of] if isinstance(of, str) else of(r)) for _, of in pairs] for r in rows]
    kinds = [_kind([cells[k] for cells in body]) for k in range(len(pairs))]

    def line(cells: Iterable[str], tag: str) -> Markup:
        parts = (
            Markup("<{tag}{kind}>{text}</{tag}>").format(
                tag=Markup(tag), kind=kind, text=cell if isinstance(cell, Markup) else escape(_written(cell))
            )
            for cell, kind in zip(cells, kinds, strict=True)
        )
        return Markup("<tr>{}</tr>").format(Markup("").join(parts))

    return Markup(
        '<div class="scroll" tabindex="0"><table class="numbers"><caption>{}</caption><thead>{}</thead><tbody>{}</tbody></table></div>'
    ).format(
        text.visible(caption),
        line((head for head, _ in pairs), "th"),
        Markup("\n").join(line(cells, "td") for cells in body),
    )


def _cell(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, Markup):
        return value
    return text.number(value) if isinstance(value, float) else str(value)


def _kind(cells: list[str]) -> Markup:
    """The class of a column, as an attribute."""
    if any(len(cell) > LONG for cell in cells):
        return Markup(' class="words note"')
    return Markup(' class="words"') if any(cell[:1].isalpha() for cell in cells) else Markup("")


def interval(row: Row | None, name: str = "estimate", lo: str = "lo", hi: str = "hi") -> str:
    """`estimate [lo, hi]`; a dash without a row or an estimate."""
    if row is None or row.get(name) is None:
        return MISSING
    ends = [row[lo], row[hi]]
    shown = text.number(row[name], sign=True)
    if any(v is None or not math.isfinite(v) for v in ends):
        return shown
    return f"{shown} [{text.number(ends[0])}, {text.number(ends[1])}]"


def ends(label: str, name: str) -> Column:
    """The column of an estimate whose ends are `name`_lo and `name`_hi."""
    return label, lambda r: interval(r, name, f"{name}_lo", f"{name}_hi")


NOTE: Column = ("note", lambda r: r["note"] or "")


def probability(row: Row | None, name: str = "p") -> str:
    """A p value with three decimals, or a dash."""
    return MISSING if row is None or row[name] is None else f"{row[name]:.3f}"
