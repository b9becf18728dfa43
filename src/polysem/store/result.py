"""What every result of a Python session can do: say in a line what it is, show itself in a notebook, become data frames,
be drawn and be saved. Of a class it asks for no more than its tables; what else it says and draws is declared by it."""

import html
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from polysem.errors import ConfigError
from polysem.store import io, tables
from polysem.store.schema import Schema
from polysem.vocabulary import attribute

ROWS, COLUMNS, LETTERS = 5, 8, 60
"""of a table that a notebook shows"""
_SCHEMAS: dict[str, Schema] = {one.name: one for one in vars(tables).values() if isinstance(one, Schema)}
_STYLE = (
    "border-collapse:collapse;font-size:.9em", "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
)  # fmt: skip


class Shown:
    """A short repr, and the same as HTML."""

    def facts(self) -> Mapping[str, object]:
        """What is said of it, in order."""
        raise NotImplementedError

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {_said(value)}" for name, value in self.facts().items())
        return f"{type(self).__name__}({said})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="{_STYLE[1]}">{html.escape(name)}</th><td style="{_STYLE[1]}">{html.escape(_said(value))}</td></tr>'
            for name, value in self.facts().items()
        )
        return f'<b>{type(self).__name__}</b><table style="{_STYLE[0]}"><tbody>{cells}</tbody></table>'


class Result(Shown):
    """Tables with what belongs to them. The first table is the main one."""

    figure: ClassVar[str] = ""
    """"module:function" that draws it: (result, **choices) -> `report.figures.Picture`; "" where there is nothing to draw"""

    def tables(self) -> Mapping[str, pa.Table]:
        """The tables by name."""
        assert is_dataclass(self)
        held = {f.name: vars(self)[f.name] for f in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, pa.Table)}

    def facts(self) -> Mapping[str, object]:
        return {name: f"{table.num_rows:,} rows" for name, table in self.tables().items() if table.num_rows}

    def to_pandas(self, table: str | None = None) -> Any:
        """A table as a pandas DataFrame; None: the main one.

        Raises:
            ConfigError: if there is no such table.
        """
        return self._one(table).to_pandas()

    def to_polars(self, table: str | None = None) -> Any:
        """A table as a polars DataFrame; None: the main one.

        Raises:
            ConfigError: if there is no such table, or polars is not installed.
        """
        try:
            import polars  # pyright: ignore[reportMissingImports]  (an optional extra)
        except ImportError as error:
            raise ConfigError("polars is not installed", hint="pip install polars, or to_pandas()") from error
        return polars.from_arrow(self._one(table))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def plot(self, **choices: Any) -> Any:
        """A figure of the report's kit, which a notebook shows and `.save("x.svg")` writes.

        Args:
            **choices: of the function that `figure` names, as `polysem.report.figures` says.

        Raises:
            ConfigError: if there is nothing to draw, or a choice is unknown.
        """
        if not self.figure:
            raise ConfigError(f"a {type(self).__name__} has no figure")
        return attribute(self.figure)(self, **choices)

    def save(self, path: str | Path) -> Path:
        """Write every table into a folder as NAME.parquet, or the main one into a file that ends in .parquet or .csv; gives
        the path.

        Raises:
            ConfigError: if the ending is another.
            StoreError: if it cannot be written.
        """
        to = Path(path)
        if to.suffix == ".csv":
            io.write_text(to, self.to_pandas().to_csv(index=False))
        elif to.suffix == ".parquet":
            name, table = next(iter(self.tables().items()))
            io.write_table(to, table, _SCHEMAS[name])
        elif to.suffix:
            raise ConfigError(f"{to} ends in {to.suffix}; expected a folder, .parquet or .csv")
        else:
            for name, table in self.tables().items():
                io.write_table(to / f"{name}.parquet", table, _SCHEMAS[name])
        return to

    def _one(self, name: str | None) -> pa.Table:
        tables = self.tables()
        if name is None:
            return tables[next(iter(tables))]
        if name not in tables:
            raise ConfigError(f"there is no table {name!r}; expected one of {', '.join(tables)}")
        return tables[name]

    def _repr_html_(self) -> str:
        first = next(iter(self.tables()), None)
        shown = super()._repr_html_() + ("" if first is None else _head(self._one(first)))
        try:
            return shown + self.plot()._repr_html_()
        except ConfigError:  # there is too little to draw
            return shown


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _head(table: pa.Table) -> str:
    """The first rows of the columns that are numbers or words."""
    shown = [field.name for field in table.schema if not pa.types.is_nested(field.type)][:COLUMNS]
    rows = [[_cell(row[name]) for name in shown] for row in table.slice(0, ROWS).select(shown).to_pylist()]
    lines = [
        "".join(f'<{tag} style="{_STYLE[1]}">{html.escape(cell)}</{tag}>' for cell in cells)
        for tag, cells in [("th", shown), *(("td", row) for row in rows)]
    ]
    more = table.num_rows - len(rows), table.num_columns - len(shown)
    said = f"{more[0]:,} more rows, {more[1]} more columns: .to_pandas()" if any(more) else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table style="{_STYLE[0]}"><tbody>{body}</tbody></table><p><small>{said}</small></p>'


def _cell(value: object) -> str:
    said = "" if value is None else _said(value)
    return said if len(said) <= LETTERS else said[: LETTERS - 1] + "…"
