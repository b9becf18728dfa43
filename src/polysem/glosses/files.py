"""Glosses from files of many habits: `file:PATH`, `file:FOLDER`, `file:PATH#NAME`.

The columns and quirks that are read are listed in `rows.py` and docs/glosses.md. A folder's files are one
source: explainers that the rows do not name are called by the file. A layer in a file's name
(`explanations_layer_4.json`) counts where rows have none.
"""

import re
from pathlib import Path

from polysem.errors import UnknownReferenceError
from polysem.glosses.base import GlossReading
from polysem.glosses.raw import SUFFIXES, read_rows, suffix_of
from polysem.glosses.select import Collection, Expected, select

_LAYER = re.compile(r"layer_(\d+)")
FIRST_EXPLAINERS = ("MaxAct",)
"""In an output-centric table the description from maximal activations is primary: the usual "
"automatic gloss."""


def read_files(path: Path, *, expected: Expected) -> GlossReading:
    """The glosses of a file or of all files of a folder.

    Raises:
        UnknownReferenceError: nothing is there.
        FormatError: a file is not what its name says; names the file, the line and the value.
        MismatchError: the glosses are for another SAE.
    """
    rows = Collection()
    for file in _files(path):
        layer = _LAYER.search(file.name)
        explainer = file.name.split(".")[0] if path.is_dir() else None
        for row in read_rows(file):
            rows.add(row, layer=layer[1] if layer else None, explainer=_without_layer(explainer))
    return select(rows, source=str(path), expected=expected, first=FIRST_EXPLAINERS)


def _without_layer(name: str | None) -> str | None:
    return None if name is None else re.sub(r"_?layer_\d+", "", name) or name


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UnknownReferenceError(
                f"no gloss file {path}", hint="check the path after 'file:' in the study"
            )
        return [path]
    found = sorted(p for p in path.iterdir() if p.is_file() and suffix_of(p.name))
    if not found:
        raise UnknownReferenceError(
            f"folder {path} holds no gloss file; expected files ending in {', '.join(SUFFIXES)}"
        )
    return found
