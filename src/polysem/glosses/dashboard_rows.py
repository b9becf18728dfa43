"""Rows of dashboards, each in its own dialect, as facts about features and texts with activations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from polysem.boundary.door import brief
from polysem.errors import FormatError
from polysem.glosses.activations import Collector, Limits
from polysem.glosses.export import Export
from polysem.glosses.origin import Origin
from polysem.glosses.raw import GlossRecord
from polysem.glosses.rows import Fields, feature_of, origin_of_row

Key = tuple[Origin, int]


@dataclass(frozen=True)
class Facts:
    """What a row says about a feature; None and empty where it is silent."""

    density: float | None = None
    """fraction of tokens on which the feature is active"""
    max_act: float | None = None
    pos_str: tuple[str, ...] = ()
    pos_values: tuple[float, ...] = ()
    neg_str: tuple[str, ...] = ()
    alignment: tuple[int, ...] = ()
    alignment_values: tuple[float, ...] = ()


@dataclass
class Gathered:
    """Everything that a source says, by SAE and feature."""

    collector: Collector
    facts: dict[Key, Facts] = field(default_factory=dict)
    where: dict[Key, str] = field(default_factory=dict)
    """a place where the feature occurs"""
    n_repeated: int = 0
    """rows of features that had a row before"""
    _ids: set[object] = field(default_factory=set)

    def add(self, row: GlossRecord) -> None:
        """Takes a row of any kind; rows that are neither feature nor text (explanations) are passed over.

        Raises:
            FormatError: the row is not what its keys promise; names file, line and value.
        """
        fields = row.fields
        texts = list(_texts(row))
        is_feature = any(name in fields for name in _FEATURE_KEYS)
        if not texts and not is_feature:
            return
        key = (_origin(row), _feature(row))
        self.where.setdefault(key, row.where)
        if is_feature:
            if key in self.facts:
                self.n_repeated += 1
                return
            self.facts[key] = _facts(row)
        for number, text in enumerate(texts):
            self._add_text(key, text, where=row.where if "tokens" in fields else f"{row.where}.{number}")

    def _add_text(self, key: Key, text: dict[str, Any], *, where: str) -> None:
        name = text.get("id")
        if not isinstance(name, str | int | None):
            raise FormatError(f"{where}: the id of a text is {brief(repr(name))}, expected text or a number")
        if name is not None:
            if name in self._ids:
                self.collector.n_repeated += 1
                return
            self._ids.add(name)
        # A text without an id is named by file and place, not by folder: folders differ between machines.
        source = str(name) if name is not None else where.rsplit("/", 1)[-1]
        self.collector.add(key, text.get("tokens"), text.get("values"), source=source, where=where)


_FEATURE_KEYS = ("maxActApprox", "frac_nonzero", "pos_str", "neuron_alignment_indices", "top_contexts")


def gather(export: Export, *, limits: Limits) -> Gathered:
    """All features and texts of an export, in one pass over each kind of file."""
    gathered = Gathered(Collector(limits))
    for kind in ("features", "activations") if export.keeps_kinds_apart else ("features",):
        for row in export.rows(kind):
            gathered.add(row)
    return gathered


def _texts(row: GlossRecord) -> Iterator[dict[str, Any]]:
    fields = row.fields
    if "tokens" in fields and "values" in fields:
        yield fields
    for item in _list(fields.get("activations"), row.where, "activations"):
        if not isinstance(item, dict):
            raise FormatError(
                f"{row.where}: activations must be objects with tokens and values, got {str(item)[:60]!r}"
            )
        yield item
    for item in _list(fields.get("top_contexts"), row.where, "top_contexts"):
        if not isinstance(item, list) or len(item) != 2:
            raise FormatError(f"{row.where}: a top context must be [tokens, values], got {str(item)[:60]!r}")
        yield {"tokens": item[0], "values": item[1]}


def _feature(row: GlossRecord) -> int:
    index = row.fields.get("index")
    if isinstance(index, str) and index.isdigit():  # the common case, without folding every column name
        return int(index)
    return feature_of(Fields(row))


def _origin(row: GlossRecord) -> Origin:
    model, layer = row.fields.get("modelId"), row.fields.get("layer")
    if isinstance(model, str) and isinstance(layer, str):
        return _neuronpedia_origin(model, layer)
    return origin_of_row(Fields(row))


@lru_cache(maxsize=64)
def _neuronpedia_origin(model: str, layer: str) -> Origin:
    return origin_of_row(Fields(GlossRecord("", {"modelId": model, "layer": layer})))


def _facts(row: GlossRecord) -> Facts:
    fields, where = row.fields, row.where
    pos = _strings(fields, "pos_str", where)
    values = _numbers(fields, "pos_values", where)
    if values and len(values) != len(pos):
        raise FormatError(f"{where}: {len(pos)} pos_str but {len(values)} pos_values; expected as many")
    order = sorted(range(len(values)), key=lambda n: -values[n]) if values else range(len(pos))
    return Facts(
        density=_number(fields, "frac_nonzero", where, most=1.0),
        max_act=_number(fields, "maxActApprox", where),
        pos_str=tuple(pos[n] for n in order),
        pos_values=tuple(values[n] for n in order) if values else (math.nan,) * len(pos),
        neg_str=_strings(fields, "neg_str", where),
        alignment=tuple(int(v) for v in _numbers(fields, "neuron_alignment_indices", where)),
        alignment_values=_numbers(fields, "neuron_alignment_values", where),
    )


def _number(fields: dict[str, Any], name: str, where: str, *, most: float = math.inf) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise FormatError(f"{where}: {name} is {brief(value)}; expected a finite number >= 0")
    if value > most:
        raise FormatError(f"{where}: {name} is {value!r}; expected a share from 0 to {most:g}")
    return float(value)


def _numbers(fields: dict[str, Any], name: str, where: str) -> tuple[float, ...]:
    values = _list(fields.get(name), where, name)
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in values):
        raise FormatError(f"{where}: {name} must be finite numbers, got {str(values)[:60]}")
    return tuple(float(v) for v in values)


def _strings(fields: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = _list(fields.get(name), where, name)
    if any(not isinstance(v, str) for v in values):
        raise FormatError(f"{where}: {name} must be strings, got {str(values)[:60]}")
    return tuple(values)


def _list(value: object, where: str, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(f"{where}: {name} must be a list, got {str(value)[:60]!r}")
    return value
