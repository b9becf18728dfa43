"""What can be listed, filtered and sorted: every table of the study, and a few that are joined from them.

A relation is a base view of DuckDB with typed fields. Fields that need another table name the join they need,
so that a page of a million pairs is found without it and only the rows on the page are joined.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from polysem.store.schema import Schema

Kind = Literal["number", "integer", "feature", "flag", "text", "list"]
"""`feature` is the number of a feature of the row's SAE"""

FEATURE_KEYS = ("feature", "i", "j", "target", "source")
"""columns that hold the number of a feature of the row's `sae`"""


@dataclass(frozen=True)
class Field:
    """One column of a relation."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    of: str = ""
    """expression over `b` (the base) and joins; without one the base's column of its name"""
    join: str = ""
    """name of the join it needs"""

    @property
    def sql(self) -> str:
        return self.of or f'b."{self.name}"'


@dataclass(frozen=True)
class RunTable:
    """Something that can be listed."""

    name: str
    title: str
    base: str
    """view or table of DuckDB"""
    key: tuple[str, ...]
    """orders rows that are otherwise equal"""
    fields: tuple[Field, ...]
    joins: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    """fields that hold a feature of the row's `sae`; their glosses can be searched"""
    texts: tuple[str, ...] = ()
    """further text fields that a search looks into"""
    aggregate: bool = False
    """the base is a view that is costly to compute"""

    def get(self, name: str) -> Field | None:
        """The field of a name, if there is one."""
        return next((f for f in self.fields if f.name == name), None)

    def describe(self) -> dict[str, object]:
        """What the page needs to know of it."""
        columns = [
            {"name": f.name, "kind": f.kind, "unit": f.unit, "meaning": f.meaning} for f in self.fields
        ]
        return {
            "name": self.name,
            "title": self.title,
            "key": list(self.key),
            "features": list(self.features),
            "texts": list(self.texts),
            "columns": columns,
        }


def of_schema(schema: Schema, *, title: str | None = None) -> RunTable:
    """The relation of a stored table: its columns, and the gloss of every feature that a row names."""
    names = [c.name for c in schema.columns]
    integers = [c.name for c in schema.columns if pa.types.is_integer(c.dtype)]
    keys = tuple(k for k in FEATURE_KEYS if k in integers) if "sae" in names else ()
    fields = [
        Field(c.name, "feature" if c.name in keys else _kind(c.dtype), c.unit, c.meaning)
        for c in schema.columns
    ]
    joins: dict[str, str] = {}
    for key in keys:
        gloss = "gloss" if key == "feature" else f"gloss_{key}"
        if gloss in names:
            continue
        joins[key] = names_of(key, f"b.{key}")
        fields.append(Field(gloss, "text", "", f"primary gloss of {key}", f"n_{key}.gloss", key))
    texts = tuple(f.name for f in fields if f.kind == "text" and not f.join and f.name not in keys)
    return RunTable(
        name=schema.name,
        title=title or schema.name.replace("_", " "),
        base=f"t_{schema.name}",
        key=schema.key,
        fields=tuple(fields),
        joins=joins,
        features=keys,
        texts=() if keys else texts,
    )


def names_of(join: str, feature: str, *, sae: str = "b.sae") -> str:
    """The join that gives the gloss of a feature as n_JOIN.gloss."""
    return f"LEFT JOIN names n_{join} ON n_{join}.sae = {sae} AND n_{join}.feature = {feature}"


def with_fields(relation: RunTable, *extra: Field, joins: Mapping[str, str] | None = None) -> RunTable:
    """The relation with more fields at its end."""
    return replace(relation, fields=(*relation.fields, *extra), joins={**relation.joins, **(joins or {})})


def _kind(dtype: pa.DataType) -> Kind:
    if pa.types.is_boolean(dtype):
        return "flag"
    if pa.types.is_integer(dtype):
        return "integer"
    if pa.types.is_floating(dtype):
        return "number"
    return "list" if pa.types.is_list(dtype) else "text"
