"""Generated pages are what the code says, and the code says what every column and term is."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_is_stale(generate: ModuleType) -> None:
    assert generate.stale() == [], "make docs"


def test_a_changed_page_is_stale(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in generate.PAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / "docs" / name).read_text())
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.stale() == []
    page = tmp_path / "reference" / "tables.md"
    page.write_text(page.read_text().replace("cosine", "sine"))
    assert generate.stale() == ["reference/tables.md"]


def test_every_column_has_a_meaning(generate: ModuleType) -> None:
    silent = [f"{s.name}.{c.name}" for s in generate.schemas() for c in s.columns if not c.meaning.strip()]
    assert silent == []


def test_every_key_has_a_sentence(generate: ModuleType) -> None:
    """Where the name does not say all: keys of the study file, each with a line of its own or a comment."""
    page = generate.settings_page()
    empty = re.findall(r"^\| `(\w+)` \| [^|]+ \|  \|$", page, flags=re.M)
    assert empty == []


def test_every_term_has_a_meaning_and_links_go_somewhere() -> None:
    text = (REPOSITORY / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if len(row) not in (4, 5) or not row[3].strip()] == []
    for link in re.findall(r"\]\(([\w/.]+\.md)", text):
        assert (REPOSITORY / "docs" / link).is_file(), link
