"""Shared fixtures. Shapes and types of the whole package are checked in every test run."""

import os
import pkgutil
from pathlib import Path

import pytest

from support.checked import check

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything of polysem is imported: every annotated function is checked by beartype in tests, and
# never for users. Not the command line: typer reads its annotations itself. Of the glosses those modules that
# hold arrays: the parsers call a hundred functions per row of an export, and have no shapes.
_PARTS = {part.name for part in pkgutil.iter_modules([str(REPOSITORY / "src" / "polysem")])} - {
    "cli",
    "glosses",
}
_ARRAYS = (
    "cache",
    "clusters",
    "concepts",
    "dashboards",
    "embed",
    "embedders",
    "grid",
    "lexical",
    "served",
    "similarity",
)
_CHECKED = [*(f"polysem.{name}" for name in sorted(_PARTS)), *(f"polysem.glosses.{name}" for name in _ARRAYS)]
check(_CHECKED)

# Thousands of small files are written: none needs to outlive a power failure.
os.environ.setdefault("POLYSEM_SYNC", "0")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the keys of who runs it."""
    for name in ("POLYSEM_API_KEY", "POLYSEM_API_BASE", "POLYSEM_KEYS", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the repository; tests that need it are skipped where it is
    absent."""
    folder = Path(os.environ.get("POLYSEM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder}; set POLYSEM_SHARED to the folder that holds data/")
    return folder


def slow_tests() -> list[str]:
    """Beginnings of the node ids of tests/slow.txt."""
    lines = (REPOSITORY / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


LAST = ("served", "properties", "unit")
"""folders of short files: a worker takes one file after the other, and at the end waits for what the other one is at"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Short files last; mark what `make test` leaves out. A name that no test of its file has is a mistake, and stops the run."""
    beginnings = slow_tests()
    long = {beginning.partition("::")[0] for beginning in beginnings}
    items.sort(key=lambda item: _place(item.path.relative_to(REPOSITORY / "tests").as_posix(), long))
    ids = [item.nodeid.removeprefix("tests/") for item in items]
    for item, name in zip(items, ids, strict=True):
        if name.startswith(tuple(beginnings)):
            item.add_marker(pytest.mark.slow)
    whole = {name.partition("::")[0] for name in ids} if not _some_chosen(items) else set()
    for beginning in beginnings:
        if beginning.partition("::")[0] in whole and not any(name.startswith(beginning) for name in ids):
            raise pytest.UsageError(f"tests/slow.txt names {beginning!r}, but no test begins so")


def _place(file: str, long: set[str]) -> int:
    folder = file.partition("/")[0]
    return LAST.index(folder) + 1 if folder in LAST and file not in long else 0


def _some_chosen(items: list[pytest.Item]) -> bool:
    """Whether single tests were asked for by name, so that a file's other tests are not here."""
    return bool(items) and any("::" in argument for argument in items[0].config.args)
