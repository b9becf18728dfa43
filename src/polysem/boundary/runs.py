"""What is said of a path that is no run folder, or a folder where a file of settings belongs: what it is, and what lies near."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

from polysem.errors import PolysemError, typed

MADE_BY = "a run folder is what polysem run STUDY.toml --out DIR makes, with study.toml and a folder for every stage"
_MOST, _SHOWN = 500, 4
"""folders that are looked at in one place; that are named"""


def refuse_run_folder(root: Path, error: type[PolysemError]) -> NoReturn:
    """Raises `error`: what `root` is instead of a run folder, and which run folders lie in it, above or beside it."""
    if not _is(root, Path.exists):
        why = "there is nothing of this name"
    elif not _is(root, Path.is_dir):
        why = "it is a file"
    elif _is(root / "transfer.toml", Path.is_file):
        why = "it is the folder of a transfer study and holds no study.toml"
    else:
        why = "it holds no study.toml"
    near = run_folders_near(root)
    raise error(
        f"{root} is no run folder: {why}; {MADE_BY}",
        hint=f"give a run folder: {_named(near)}" if near else f"polysem run STUDY.toml --out {typed(root)}",
    )


def refuse_folder(path: Path, what: str, error: type[PolysemError], *, otherwise: str) -> NoReturn:
    """Raises `error` for a folder in the place of a file of settings: names the file in it, or those of runs near it."""
    name = "transfer.toml" if "transfer" in what else "study.toml"
    own = [path] if _is(path / name, Path.is_file) else []
    found = own or [one for one in run_folders_near(path) if _is(one / name, Path.is_file)]
    raise error(
        f"{what} {path} is a folder; expected a file" + ("" if found else f", and it holds no {name}"),
        hint=f"give the file, and the folder as --out: {typed(found[0] / name)} --out {typed(found[0])}"
        if found
        else otherwise,
    )


def run_folders_near(root: Path) -> list[Path]:
    """Run folders with a finished stage: above a path, in it, and beside it."""
    places = [root, root / "runs", root.parent, root.parent / "runs", Path("runs")]
    found = [*root.parents[:3], *(one for place in places for one in _folders(place))]
    return [one for one in dict.fromkeys(found) if one != root and _is_begun(one)]


def _is_begun(folder: Path) -> bool:
    if not any(_is(folder / name, Path.is_file) for name in ("study.toml", "transfer.toml")):
        return False
    return any(_is(stage / "manifest.json", Path.is_file) for stage in _folders(folder))


def _named(found: list[Path]) -> str:
    more = len(found) - _SHOWN
    return ", ".join(map(typed, found[:_SHOWN])) + (f" or one of {more} more" if more > 0 else "")


def _folders(place: Path) -> Iterator[Path]:
    try:
        with os.scandir(place) as entries:
            names = sorted(entry.name for entry in islice(entries, _MOST))
    except (OSError, ValueError):
        return
    yield from (one for name in names if _is(one := place / name, Path.is_dir))


def _is(path: Path, question: Callable[[Path], bool]) -> bool:
    """Whether it is; no, for a path that cannot be one."""
    try:
        return question(path)
    except (OSError, ValueError):
        return False
