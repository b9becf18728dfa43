"""A study as TOML text, for studies that were made in Python and have no file."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from polysem.config import Study

_LISTS = ("saes", "vectors", "transcoders")


def to_toml(study: Study) -> str:
    """TOML that `parse_study` reads back as the same study; every value is written, defaults too."""
    whole = study.model_dump(mode="json", exclude_none=True)
    simple = {k: v for k, v in whole.items() if not isinstance(v, dict) and k not in _LISTS}
    lines = [*_pairs(simple)]
    for name in _LISTS:
        for entry in whole[name]:
            lines += ["", f"[[{name}]]", *_pairs(entry)]
    for name, section in whole.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *_pairs(section)]
    return "\n".join(lines) + "\n"


def _pairs(section: Mapping[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        # A JSON string, number, boolean or list of them is TOML as it stands, but for one character.
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
