"""Questions to a relation, from the address of a page to SQL with bound parameters.

    f=interference>=0.3   f=is_dense=false   f=gloss_i~river   q=river, lake   near=17   sort=-interference
    f=target~river, lake  (the feature's gloss or tokens hold one of these)
    f=target~@location    (they hold a word of this category, whole)

Where a row says which tokens of its target were read, only those count: an effect on other tokens is no steering
toward a word that the target's gloss names, or that the feature merely writes.

Nothing of a question is ever part of the SQL text: columns are looked up among the relation's fields,
operators in a table, values are bound.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from polysem.categories import builtin
from polysem.errors import ConfigError
from polysem.explore.relations import Field, RunTable
from polysem.vocabulary import TOKEN_SETS

MAX_ROWS = 1000
"""rows of one page"""
MAX_OFFSET = 1 << 48
MAX_FILTERS = 24
MAX_AMONG = 400
_FILTER = re.compile(r"^([a-z0-9_]+)(>=|<=|!=|=|>|<|~)(.*)$", re.DOTALL)
_ORDERED = (">=", "<=", ">", "<", "=", "!=")
_OPERATORS = {
    **dict.fromkeys(("number", "integer"), _ORDERED),
    "feature": (*_ORDERED, "~"),
    "flag": ("=", "!="),
    "text": ("=", "!=", "~"),
    "list": ("~",),
}


class Filter(NamedTuple):
    """One condition on one column."""

    field: Field
    operator: str
    value: float | int | bool | str


class Sql(NamedTuple):
    """A statement and what is bound into it."""

    text: str
    values: list[Any]


@dataclass(frozen=True)
class Query:
    """What is asked of a relation."""

    relation: RunTable
    filters: tuple[Filter, ...] = ()
    search: tuple[str, ...] = ()
    """a row is kept if any of these is in one of its glosses (in its texts, where it has none)"""
    near: int | None = None
    """a row is kept if it names this feature"""
    among: tuple[int, ...] = ()
    """a row is kept if it names these features and no other"""
    order: tuple[Field, bool] | None = None
    """field, and whether the largest comes first"""
    limit: int = 50
    offset: int = 0

    @classmethod
    def parse(
        cls,
        relation: RunTable,
        *,
        filters: Sequence[str] = (),
        search: str = "",
        near: str = "",
        among: str = "",
        sort: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> "Query":
        """The query of the texts of an address.

        Raises:
            ConfigError: naming what is wrong and what was expected.
        """
        if len(filters) > MAX_FILTERS:
            raise ConfigError(f"{len(filters)} filters; expected at most {MAX_FILTERS}")
        if not 0 <= limit <= MAX_ROWS or not 0 <= offset < MAX_OFFSET:
            raise ConfigError(
                f"limit {limit} and offset {offset}; expected 0 to {MAX_ROWS} rows from 0 to {MAX_OFFSET - 1}"
            )
        if near and not re.fullmatch(r"\d{1,9}", near):
            raise ConfigError(f"near={near!r}: expected the number of a feature")
        if (among and not re.fullmatch(r"\d{1,9}(,\d{1,9})*", among)) or among.count(",") >= MAX_AMONG:
            raise ConfigError(
                f"among={among[:60]!r}: expected up to {MAX_AMONG} numbers of features, with commas"
            )
        if (near or among) and not relation.features:
            raise ConfigError(f"near={near!r}, among={among[:60]!r}: rows of {relation.name} name no feature")
        return cls(
            relation=relation,
            filters=tuple(parse_filter(relation, text) for text in filters),
            search=_words(search),
            near=int(near) if near else None,
            among=tuple(int(n) for n in among.split(",")) if among else (),
            order=_order(relation, sort),
            limit=limit,
            offset=offset,
        )

    def page(self) -> Sql:
        """The rows of the page. The page is cut before what only its rows need is joined."""
        inner = {f.field.join for f in self.filters} | ({self.order[0].join} if self.order else set())
        where, values = self._where()
        text = (
            f"WITH b AS (SELECT b.* FROM {self.relation.base} b {self._joins(inner)}{where}"
            f"{self._order_by()} LIMIT ? OFFSET ?) "
            f"SELECT {self._columns()} FROM b {self._joins(set(self.relation.joins))}{self._order_by()}"
        )
        return Sql(text, [*values, self.limit, self.offset])

    def count(self) -> Sql:
        """How many rows there are in all."""
        where, values = self._where()
        inner = {f.field.join for f in self.filters}
        return Sql(f"SELECT count(*) FROM {self.relation.base} b {self._joins(inner)}{where}", values)

    def everything(self) -> Sql:
        """All rows, in order."""
        where, values = self._where()
        joins = self._joins(set(self.relation.joins))
        text = f"SELECT {self._columns()} FROM {self.relation.base} b {joins}{where}{self._order_by()}"
        return Sql(text, values)

    def _columns(self) -> str:
        return ", ".join(f'{f.sql} AS "{f.name}"' for f in self.relation.fields)

    def _joins(self, names: set[str]) -> str:
        return " ".join(sql for name, sql in self.relation.joins.items() if name in names)

    def _order_by(self) -> str:
        terms = []
        if self.order:
            field, descending = self.order
            sql = f"lower({field.sql})" if field.kind == "text" else field.sql
            terms.append(f"{sql} {'DESC' if descending else 'ASC'} NULLS LAST")
        terms += [f'b."{name}"' for name in self.relation.key]
        return f" ORDER BY {', '.join(terms)}" if terms else ""

    def _where(self) -> Sql:
        terms: list[str] = []
        values: list[Any] = []
        for f in self.filters:
            text, bound = _condition(f, by_tokens=self._says_what_was_read(f))
            terms.append(text)
            values += bound
        if self.near is not None:
            terms.append("(" + " OR ".join(f"b.{key} = ?" for key in self.relation.features) + ")")
            values += [self.near] * len(self.relation.features)
        if self.among:
            terms += [f"list_contains(?, b.{key})" for key in self.relation.features]
            values += [list(self.among)] * len(self.relation.features)
        if self.search:
            text, bound = self._search()
            terms.append(text)
            values += bound
        return Sql(f" WHERE {' AND '.join(terms)}" if terms else "", values)

    def _says_what_was_read(self, filter_: Filter) -> bool:
        return filter_.field.name == "target" and self.relation.get("token_set") is not None

    def _search(self) -> Sql:
        if self.relation.features:
            # The glosses are few and the rows many: find the features first.
            any_word = " OR ".join("contains(lower_gloss, ?)" for _ in self.search)
            hits = f"(SELECT sae, feature FROM names WHERE {any_word})"
            terms = [f"(b.sae, b.{key}) IN {hits}" for key in self.relation.features]
            return Sql(f"({' OR '.join(terms)})", list(self.search) * len(terms))
        terms = [f'contains(lower(b."{name}"), ?)' for name in self.relation.texts for _ in self.search]
        if not terms:
            raise ConfigError(f"rows of {self.relation.name} hold no text to search in")
        return Sql(f"({' OR '.join(terms)})", list(self.search) * len(self.relation.texts))


def parse_filter(relation: RunTable, text: str) -> Filter:
    """The filter of its text.

    Raises:
        ConfigError: if the column is not one of the relation, or operator or value do not suit it.
    """
    match = _FILTER.match(text)
    if match is None:
        raise ConfigError(
            f"filter {text[:80]!r}: expected COLUMN OPERATOR VALUE, for example interference>=0.3"
        )
    name, operator, value = match.groups()
    field = relation.get(name)
    if field is None:
        known = ", ".join(f.name for f in relation.fields)
        raise ConfigError(f"filter {text[:80]!r}: {relation.name} has no column {name!r}; it has {known}")
    if operator not in _OPERATORS[field.kind]:
        raise ConfigError(
            f"filter {text[:80]!r}: {name} can be compared with {' '.join(_OPERATORS[field.kind])}"
        )
    if field.kind == "feature" and operator == "~":
        for word in _words(value):
            if word.startswith("@"):
                category_words(word[1:])
        return Filter(field, operator, value.strip())
    return Filter(field, operator, _value(field, value.strip(), text))


def _value(field: Field, value: str, text: str) -> float | int | bool | str:
    match field.kind:
        case "number" | "integer" | "feature":
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise ConfigError(f"filter {text[:80]!r}: {value[:40]!r} is no number")
            return number
        case "flag":
            if value not in ("true", "false"):
                raise ConfigError(f"filter {text[:80]!r}: expected true or false")
            return value == "true"
        case _:
            return value


def category_words(name: str) -> frozenset[str]:
    """The words of a category, as transfer studies have it. Raises ConfigError if there is no such category."""
    if name not in builtin().words:
        raise ConfigError(f"there is no category {name[:40]!r}; there are {', '.join(builtin().words)}")
    return builtin().words[name]


def categories() -> dict[str, list[str]]:
    """Every category and its words, sorted."""
    return {name: sorted(words) for name, words in builtin().words.items()}


def _words(text: str) -> tuple[str, ...]:
    """What is between commas, in small letters."""
    return tuple(word for part in text.split(",") if (word := part.strip().lower()))


def _condition(filter_: Filter, *, by_tokens: bool) -> Sql:
    """One condition; `by_tokens` where a row names the tokens of its target that were read."""
    field, operator, value = filter_
    if operator == "~" and field.kind == "feature":
        found = [_called(field, _words(str(value)), side, only_tokens=by_tokens) for side in TOKEN_SETS]
        told = [f"b.token_set = '{side}' AND " if by_tokens else "" for side in TOKEN_SETS]
        terms = [f"({which}{hits.text})" for which, hits in zip(told, found, strict=True)]
        return Sql(f"({' OR '.join(terms)})", [value for hits in found for value in hits.values])
    if operator == "~":
        sql = f"array_to_string({field.sql}, ' ')" if field.kind == "list" else field.sql
        return Sql(f"contains(lower({sql}), lower(?))", [value])
    return Sql(f"{field.sql} {operator} ?", [value])


def _called(field: Field, words: Sequence[str], side: str, *, only_tokens: bool) -> Sql:
    """Whether a feature's tokens of one kind, or (unless `only_tokens`) its gloss, hold one of the words."""
    text, whole = ("read", "read_words") if only_tokens else ("lower", "words")
    terms: list[str] = []
    values: list[Any] = []
    for word in words:
        if word.startswith("@"):
            terms.append(f"list_has_any({whole}_{side}, ?)")
            values.append(sorted(category_words(word[1:])))
        else:
            terms.append(f"contains({text}_{side}, ?)")
            values.append(word)
    hits = f"SELECT sae, feature FROM names WHERE {' OR '.join(terms) or 'false'}"
    return Sql(f"(b.sae, {field.sql}) IN ({hits})", values)


def _order(relation: RunTable, sort: str) -> tuple[Field, bool] | None:
    if not sort:
        return None
    field = relation.get(sort.removeprefix("-"))
    if field is None or field.kind == "list":
        known = ", ".join(f.name for f in relation.fields if f.kind != "list")
        raise ConfigError(
            f"sort={sort[:60]!r}: {relation.name} can be sorted by {known}, with - the largest first"
        )
    return field, sort.startswith("-")
