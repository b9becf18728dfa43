"""Shared fixtures. Shapes and types of the whole package are checked in every test run."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before anything of polysem is imported: every annotated function is checked by beartype in tests, and
# never for users.
install_import_hook("polysem", "beartype.beartype")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the repository; tests that need it are skipped where it is
    absent."""
    folder = Path(os.environ.get("POLYSEM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder}; set POLYSEM_SHARED to the folder that holds data/")
    return folder
