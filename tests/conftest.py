"""Shared fixtures. Shapes and types of the whole package are checked in every test run."""

import os
import pkgutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parents[1]

# Before anything of polysem is imported: every annotated function is checked by beartype in tests, and
# never for users. Not the command line: typer reads its annotations itself.
_PARTS = pkgutil.iter_modules([str(REPOSITORY / "src" / "polysem")])
install_import_hook([f"polysem.{part.name}" for part in _PARTS if part.name != "cli"], "beartype.beartype")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the repository; tests that need it are skipped where it is
    absent."""
    folder = Path(os.environ.get("POLYSEM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder}; set POLYSEM_SHARED to the folder that holds data/")
    return folder
