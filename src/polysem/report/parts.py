"""What pages beside the report share: the page, tables of untrusted text, numbers with intervals."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

from polysem.report import text
from polysem.report.write import _asset, _policy

MISSING = "–"
LONG = 48
"""characters beyond which the cells of a column are texts that wrap"""


def page(title: str, lead: str, body: Markup) -> str:
    """A page of one part, in the style of the report; it loads and sends nothing."""
    style, script = _asset("report.css"), Markup("")
    whole = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{title}</title><style>{style}</style></head>"
        '<body><header><div class="wrap"><p class="kicker">polysem report</p><h1>{title}</h1>'
        '<p class="lead">{lead}</p></div></header>'
        '<main class="wrap part">{body}</main></body></html>\n'
    )
    return str(whole.format(policy=_policy(style, script), style=style, title=title, lead=lead, body=body))


def table(head: Iterable[str], body: Iterable[Iterable[object]], *, caption: str) -> Markup:
    """A table that scrolls by itself; every cell is made visible and escaped. Columns of words stand left, of
    numbers right, and long texts wrap."""
    heads = list(head)
    rows = [[str(cell) for cell in cells] for cells in body]
    kinds = [_kind([row[k] for row in rows]) for k in range(len(heads))]

    def line(cells: list[str], tag: str) -> Markup:
        parts = (
            Markup("<{tag}{kind}>{text}</{tag}>").format(
                tag=Markup(tag), kind=kind, text=escape(text.visible(cell))
            )
            for cell, kind in zip(cells, kinds, strict=True)
        )
        return Markup("<tr>{}</tr>").format(Markup("").join(parts))

    return Markup(
        '<div class="scroll" tabindex="0"><table class="numbers"><caption>{}</caption><thead>{}</thead><tbody>{}</tbody></table></div>'
    ).format(text.visible(caption), line(heads, "th"), Markup("\n").join(line(row, "td") for row in rows))


def _kind(cells: list[str]) -> Markup:
    """The class of a column, as an attribute."""
    if any(len(cell) > LONG for cell in cells):
        return Markup(' class="words note"')
    return Markup(' class="words"') if any(cell[:1].isalpha() for cell in cells) else Markup("")


def interval(row: Mapping[str, Any], name: str = "estimate", lo: str = "lo", hi: str = "hi") -> str:
    """`estimate [lo, hi]`; a dash without an estimate."""
    if row.get(name) is None:
        return MISSING
    ends = [row[lo], row[hi]]
    if any(v is None or not math.isfinite(v) for v in ends):
        return text.number(row[name], sign=True)
    return f"{text.number(row[name], sign=True)} [{text.number(ends[0])}, {text.number(ends[1])}]"


def shown(value: float | int | None) -> str:
    """A number, or a dash."""
    return MISSING if value is None else text.number(value)
