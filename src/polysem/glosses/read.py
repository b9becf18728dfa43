"""The door to glosses from outside: one reference, one list."""

import re
from pathlib import Path

import httpx

from polysem.errors import ConfigError
from polysem.glosses.base import Gloss, GlossReading
from polysem.glosses.select import Expected
from polysem.types import Site


def read_glosses(
    source: str,
    *,
    d_sae: int | None = None,
    expected_source: str | None = None,
    site: Site | None = None,
    model_id: str | None = None,
    client: httpx.Client | None = None,
) -> list[Gloss]:
    """The glosses of one SAE, by feature, the primary gloss of each first. What was left out is logged as a
    WARNING.

    Arguments and errors are those of `read_gloss_source`, which also returns the counts.
    """
    return read_gloss_source(
        source, d_sae=d_sae, expected_source=expected_source, site=site, model_id=model_id, client=client
    ).glosses


def read_gloss_source(
    source: str,
    *,
    d_sae: int | None = None,
    expected_source: str | None = None,
    site: Site | None = None,
    model_id: str | None = None,
    client: httpx.Client | None = None,
) -> GlossReading:
    """The glosses of one SAE and the report of how they were read.

    Args:
        source: `neuronpedia:FOLDER_FILE_OR_URL`, `neuronpedia:MODEL/SOURCE`, `file:PATH`, `file:FOLDER`;
            with `#NAME` at the end, NAME is the `expected_source`.
        d_sae: number of features; larger numbers are refused, features without a gloss reported.
        expected_source: the source's name of the SAE, `model/name` or `name`. Needed where a file holds
            several SAEs that site and model do not tell apart.
        site: hook point of the SAE; rows that name another layer or kind of site are not its glosses.
        model_id: model of the SAE; rows that name another model are not its glosses.
        client: for web addresses; None makes one.

    Raises:
        ConfigError: `source` is no such reference.
        UnknownReferenceError: nothing is there, or no connection.
        FormatError: a file is damaged or has no glosses; names the file, the line and the value.
        MismatchError: the glosses are for another SAE; names the file and the feature or SAE.
    """
    from polysem.glosses.files import read_files
    from polysem.glosses.neuronpedia import read_explanations

    kind, _, rest = source.partition(":")
    if kind not in {"neuronpedia", "file"} or not rest:
        raise ConfigError(
            f"unknown source of glosses {source!r}; expected tokens, neuronpedia:FOLDER_OR_URL or file:PATH",
            hint="set glosses.source in the study",
        )
    rest, name = split_name(rest)
    expected = Expected(d_sae, expected_source or name, site, model_id)
    if kind == "file":
        return read_files(Path(rest).expanduser(), expected=expected)
    return read_explanations(rest, expected=expected, client=client)


def split_name(reference: str) -> tuple[str, str | None]:
    """`PATH#NAME` as (PATH, NAME); a path that exists as written is left whole."""
    match = re.fullmatch(r"(?P<path>.+)#(?P<name>[^#]+)", reference)
    if match is None or Path(reference).expanduser().exists():
        return reference, None
    return match["path"], match["name"]
