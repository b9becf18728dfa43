"""From parsed rows to the glosses of one SAE: other SAEs left out, repeats dropped, numbers checked,
everything counted.

Rows are kept in memory once, without repeats.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polysem.boundary.door import brief
from polysem.errors import FormatError, MismatchError
from polysem.glosses.base import Gloss, GlossReading, GlossReport, ordered, say_left_out
from polysem.glosses.failures import is_failure
from polysem.glosses.origin import choose
from polysem.glosses.raw import GlossRecord
from polysem.glosses.rows import COLUMNS_HINT, Parsed, is_header, parse_glosses, unread_columns
from polysem.types import Site

LEAST = 0.1
"""share of an SAE's rows below which those that are glosses are no sample of what was meant"""


@dataclass(frozen=True)
class Expected:
    """What is known of the SAE that the glosses must belong to."""

    d_sae: int | None = None
    """number of features; numbers at or above it are refused, absent ones are reported"""
    source: str | None = None
    """the source's name of the SAE: `model/name` or `name`; goes before site and model"""
    site: Site | None = None
    model_id: str | None = None


@dataclass
class Collection:
    """Parsed rows of one source, as they come."""

    parsed: list[Parsed] = field(default_factory=list)
    n_rows: int = 0
    n_headers: int = 0
    n_duplicates: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    """columns that are not looked at -> rows in which they say something"""
    ignored: tuple[str, ...] = ()
    """files of the folder that are not read"""
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def add(self, row: GlossRecord, *, layer: str | None = None, explainer: str | None = None) -> None:
        """Takes a row: its glosses, or a count of why there are none."""
        self.n_rows += 1
        if is_header(row):
            self.n_headers += 1
            return
        self.unread.update(unread_columns(row))
        for item in parse_glosses(row, layer=layer, explainer=explainer):
            key = (
                ("id", item.row_id, item.origin, item.feature, item.explainer)
                if item.row_id is not None
                else (item.origin, item.feature, item.explainer, item.text)
            )
            if key in self._seen:
                self.n_duplicates += 1
            else:
                self._seen.add(key)
                self.parsed.append(item)


def select(rows: Collection, *, source: str, expected: Expected, first: Sequence[str] = ()) -> GlossReading:
    """The glosses of the expected SAE, ordered, with their report. Logs a WARNING where features have none
    or rows were left out.

    Raises:
        MismatchError: the rows name another SAE, or a feature number is not below d_sae.
        FormatError: there is no gloss at all.
    """
    origins = choose(
        (p.origin for p in rows.parsed),
        expected=expected.source,
        site=expected.site,
        model_id=expected.model_id,
        file=source,
    )
    kept = [p for p in rows.parsed if p.origin in origins]
    _check_numbers(kept, expected.d_sae)
    failed = [p for p in kept if p.text and is_failure(p.text)]
    spoken = [p for p in kept if p.text and not is_failure(p.text)]
    glosses = ordered((_gloss(p, source) for p in spoken), first=first)
    if not glosses:
        others = f", {len(failed)} of them failures such as {brief(failed[0].text)}" if failed else ""
        raise FormatError(
            f"{source}: no gloss in {rows.n_rows} rows{others}; expected rows with a feature number and a text",
            hint=COLUMNS_HINT,
        )
    covered = {g.feature for g in glosses}
    report = GlossReport(
        source=source,
        n_rows=rows.n_rows,
        n_glosses=len(glosses),
        n_features=len(covered),
        n_duplicates=rows.n_duplicates,
        n_without_text=sum(not p.text for p in kept),
        n_failed=len(failed),
        n_headers=rows.n_headers,
        n_other_source=len(rows.parsed) - len(kept),
        unread=dict(rows.unread),
        ignored=rows.ignored,
        missing=tuple(sorted(set(range(expected.d_sae or 0)) - covered)),
    )
    left_out = {
        "repeated": report.n_duplicates,
        "without text": report.n_without_text,
        "failures that are no gloss": report.n_failed,
        "repeated headers": report.n_headers,
        "glosses of another SAE": report.n_other_source,
        f"files of the folder ({_few(report.ignored)})": len(report.ignored),
        f"columns ({_few(sorted(report.unread))})": len(report.unread),
    }
    absent = f"of {expected.d_sae} features have no gloss"
    say_left_out(source, f"{report.n_rows} rows", left_out, report.missing, absent)
    if len(glosses) < LEAST * len(kept):
        raise FormatError(
            f"{source}: {len(glosses)} of {len(kept)} rows of this SAE are glosses, less than a tenth; {report.n_failed} are "
            f"failures{f' such as {brief(failed[0].text)}' if failed else ''}, {report.n_without_text} have no text",
            hint="look at the column of texts; leave the rows without a gloss out of the file if the rest is what you mean",
        )
    return GlossReading(glosses, report)


def _few(names: Sequence[str]) -> str:
    return brief(", ".join(names[:8]) + (" ..." if len(names) > 8 else ""))


def _gloss(parsed: Parsed, source: str) -> Gloss:
    origin = parsed.origin
    if origin.model and origin.name:
        named = str(origin)
    else:  # the file's name, never its folder: tables are the same on every machine
        named = source.rstrip("/").rsplit("/", 1)[-1] + (f"#{origin.name}" if origin.name else "")
    return Gloss(parsed.feature, parsed.text, named, parsed.explainer, parsed.embedding)


def _check_numbers(parsed: Iterable[Parsed], d_sae: int | None) -> None:
    wrong = next((p for p in parsed if d_sae is not None and p.feature >= d_sae), None)
    if wrong is not None:
        raise MismatchError(
            f"{wrong.where}: feature {wrong.feature} does not exist in an SAE of {d_sae} "
            "features: the glosses are for another SAE",
            hint="give the glosses of this SAE; where the file holds several, name the one that is meant: 'file:PATH#NAME'",
        )
