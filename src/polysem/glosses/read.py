"""The door to glosses from outside: one reference, one list.

    file:PATH, file:FOLDER                        files of many habits; what is read of them: `rows.py`, docs/glosses.md
    neuronpedia:FOLDER_FILE_OR_URL, :MODEL/SOURCE  explanations of an export
    ...#NAME                                       the SAE of several in the source

A folder's files are one source: explainers that the rows do not name are called by the file. A layer in a
file's name (`explanations_layer_4.json`) counts where rows have none.
"""

import re
from pathlib import Path

import httpx

from polysem.boundary.door import Door
from polysem.boundary.files import exists, listing, local_path
from polysem.errors import ConfigError, UnknownReferenceError
from polysem.glosses.base import Gloss, GlossReading
from polysem.glosses.export import BUCKET, open_export
from polysem.glosses.raw import SUFFIXES, is_delphi, read_rows, suffix_of
from polysem.glosses.select import Collection, Expected, select
from polysem.http import Retries
from polysem.types import Site

_DOOR = Door("gloss file", "check the path after 'file:' in the study")
_LAYER = re.compile(r"layer_(\d+)")
FIRST_EXPLAINERS = ("MaxAct",)
"""In an output-centric table the description from maximal activations is primary: the usual automatic gloss."""


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
        source,
        d_sae=d_sae,
        expected_source=expected_source,
        site=site,
        model_id=model_id,
        client=client,
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
    kind, _, rest = source.partition(":")
    if kind not in {"neuronpedia", "file"} or not rest:
        raise ConfigError(
            f"unknown source of glosses {source!r}; expected tokens, zoo, neuronpedia:FOLDER_OR_URL or file:PATH",
            hint="set glosses.source in the study",
        )
    rest, name = split_name(rest)
    expected = Expected(d_sae, expected_source or name, site, model_id)
    if kind == "file":
        return read_files(local_path(rest, door=_DOOR), expected=expected)
    return read_explanations(rest, expected=expected, client=client)


def split_name(reference: str) -> tuple[str, str | None]:
    """`PATH#NAME` as (PATH, NAME); a path that exists as written is left whole."""
    match = re.fullmatch(r"(?P<path>.+)#(?P<name>[^#]+)", reference)
    if match is None or exists(local_path(reference, door=_DOOR)):
        return reference, None
    return match["path"], match["name"]


def read_files(path: Path, *, expected: Expected) -> GlossReading:
    """The glosses of a file or of all files of a folder.

    Raises:
        UnknownReferenceError: nothing is there.
        FormatError: a file is not what its name says; names the file, the line and the value.
        MismatchError: the glosses are for another SAE.
    """
    files, ignored = _files(path)
    rows = Collection(ignored=ignored)
    for file in files:
        layer = _LAYER.search(file.name)
        explainer = file.name.split(".")[0] if path.is_dir() and not is_delphi(file.name) else None
        for row in read_rows(file):
            rows.add(row, layer=layer[1] if layer else None, explainer=_without_layer(explainer))
    return select(rows, source=str(path), expected=expected, first=FIRST_EXPLAINERS)


def _without_layer(name: str | None) -> str | None:
    return None if name is None else re.sub(r"_?layer_\d+", "", name) or name


def _files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The files of a path to read, and the names of those that are not."""
    if not path.is_dir():
        if not exists(path):
            raise UnknownReferenceError(
                f"no gloss file {path}", hint="check the path after 'file:' in the study"
            )
        return [path], ()
    every = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in every if suffix_of(p.name)]
    if not found:
        raise UnknownReferenceError(
            f"folder {path} holds no gloss file; expected files ending in {', '.join(SUFFIXES)}, or delphi's "
            "MODULE_latent12.txt",
            hint=f"it holds {listing(path)}; check the path after 'file:' in the study",
        )
    return found, tuple(p.name for p in every if not suffix_of(p.name))


def read_explanations(
    reference: str, *, expected: Expected, client: httpx.Client | None = None, retries: Retries | None = None
) -> GlossReading:
    """All explanations of an export that belong to one SAE, with the vectors they carry.

    Args:
        reference: folder, file, address, or MODEL/SOURCE at the public bucket.
        expected: what is known of the SAE.
        client: for addresses; None makes one.
        retries: for addresses.

    Raises:
        UnknownReferenceError: nothing there, or no connection.
        FormatError: damaged or foreign file; names file and line.
        MismatchError: the export is of another SAE.
    """
    export = open_export(reference, client=client, retries=retries)
    rows = Collection()
    for row in export.rows("explanations"):
        if "tokens" not in row.fields:  # an export in one folder has rows of activations between
            rows.add(row)
    return select(rows, source=export.name.removeprefix(f"{BUCKET}/"), expected=expected)
