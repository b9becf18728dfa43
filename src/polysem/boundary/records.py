"""Rows of data sets, as the library `datasets` gives them."""

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl

from polysem.boundary.door import Door, brief, telling
from polysem.errors import ConfigError, FormatError

DATASETS = "datasets:"
"""in front of a data set of the Hub"""
_ASKED: Mapping[str, str | None] = {"config": None, "split": "train", "revision": None, "column": "text"}
"""what may be asked of a data set, as in a web address: ?split=train&column=text"""


def dataset_of(ref: str) -> tuple[str, Mapping[str, str | None]]:
    """Name of a data set, and what is asked of it: config, split, revision, column.

    Raises:
        FormatError: if the reference says something else.
    """
    name, _, asked = ref.removeprefix(DATASETS).partition("?")
    given = dict(parse_qsl(asked, keep_blank_values=True))
    if not name or not set(given) <= set(_ASKED) or "" in given.values():
        raise FormatError(
            f"corpus {brief(ref)!r}: expected {DATASETS}OWNER/NAME, then perhaps ?{'=...&'.join(_ASKED)}=...",
            hint="set corpus.ref in the study",
        )
    return name, {**_ASKED, **given}


def text_rows(name: str, asked: Mapping[str, str | None], *, door: Door) -> Iterator[str]:
    """One column of a data set, in order, streamed: no more is fetched than is read. Every row must be text.

    Args:
        name: OWNER/NAME on the Hub, or a local folder.
        asked: of `dataset_of`: its subset (None: it has one), split, commit (None: the newest) and column.
        door: what the errors say.

    Raises:
        ConfigError: `datasets` is not installed.
        PolysemError: of the door: there is no such data set, split or column, or a row is no text.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("datasets is not installed", hint="pip install 'polysem[datasets]'") from error
    column = asked["column"]
    with telling(door, name):
        rows = datasets.load_dataset(
            name, asked["config"], split=asked["split"], revision=asked["revision"], streaming=True
        )
        for n, row in enumerate(rows):
            if not isinstance(row.get(column), str):
                known = ", ".join(map(brief, row))
                raise door.refuse(name, f"row {n} has no text in column {column!r}; its columns are {known}")
            yield row[column]
