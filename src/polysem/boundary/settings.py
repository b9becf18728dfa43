"""One value of a foreign configuration, by its type; and whether a model's configuration can be one at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from polysem.boundary.door import Door, brief
from polysem.errors import FormatError

T = TypeVar("T")
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
LARGEST = {"layer": 1 << 12, "head": 1 << 14, "": 1 << 27}
"""a part of a setting's name -> the largest whole number that a model of any size has there"""
LARGEST_SETTING = 1 << 63
_COUNTS = (
    "n_layer", "num_hidden_layers", "num_layers", "n_head", "num_attention_heads", "num_key_value_heads",
    "n_embd", "hidden_size", "intermediate_size", "n_inner", "head_dim", "vocab_size", "n_positions", "n_ctx",
    "max_position_embeddings",
)  # fmt: skip
_OPTIONAL = {"n_inner", "head_dim", "num_key_value_heads"}


def setting(
    config: Mapping[str, Any], key: str, kind: type[T], *, where: str | Path, default: T | None = None
) -> T | None:
    """A value of a configuration, `default` if it is absent or null.

    Raises:
        FormatError: if it is of another type, or not finite; an int is taken where a float is expected, a bool never as
            a number.
    """
    value = config.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = kind(value)  # at most 100 digits, as boundary.text reads them
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, int | float) and not abs(value) < LARGEST_SETTING):
        raise FormatError(f"{where}: {key} is {brief(repr(value))}, expected a value of type {_KINDS[kind]}")
    return value  # pyright: ignore[reportReturnType]  (of `kind`, as was just seen)


def check_model_config(config: Mapping[str, Any], where: Path, *, door: Door) -> None:
    """Refuses sizes that no model has, before a library makes a model of them.

    Raises:
        the door's error: a size that is no whole number above 0, or beyond LARGEST.
    """
    for name in _COUNTS:
        value = config.get(name)
        if value is None and (name in _OPTIONAL or name not in config):
            continue
        most = next(limit for part, limit in LARGEST.items() if part in name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise door.refuse(
                where, f"{name} is {brief(repr(value))}, expected a whole number from 1 to {most:,}"
            )
