"""Shared fixtures. Shapes and types of the whole package are checked in every test run."""

import os
import pkgutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything of polysem is imported: every annotated function is checked by beartype in tests, and
# never for users. Not the command line: typer reads its annotations itself. Of the glosses those modules that
# hold arrays: the parsers call a hundred functions per row of an export, and have no shapes.
_PARTS = {part.name for part in pkgutil.iter_modules([str(REPOSITORY / "src" / "polysem")])} - {
    "cli",
    "glosses",
}
_ARRAYS = ("cache", "clusters", "dashboards", "embed", "embedders", "served")
_CHECKED = [*(f"polysem.{name}" for name in sorted(_PARTS)), *(f"polysem.glosses.{name}" for name in _ARRAYS)]
install_import_hook(_CHECKED, "beartype.beartype")

# Thousands of small files are written: none needs to outlive a power failure.
os.environ.setdefault("POLYSEM_SYNC", "0")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the repository; tests that need it are skipped where it is
    absent."""
    folder = Path(os.environ.get("POLYSEM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder}; set POLYSEM_SHARED to the folder that holds data/")
    return folder
