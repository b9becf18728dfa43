"""Every block of code in README and docs is run, read by the parser that will read it, or says why it is not run here."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import typer

from polysem.cli.app import app
from polysem.config import Study
from polysem.transfer.config import TransferStudy

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted(p for p in (REPOSITORY / "docs").rglob("*.md") if p.name != "cli.md"),
]
VERBS: dict[str, click.Command] = typer.main.get_command(app).commands
_BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
_MARK = 'title="not run here: '
_STUDY = {"model": {"ref": "zoo:gpt2"}, "saes": [{"ref": "zoo:gpt2/blocks.2.hook_resid_post"}]}
_TRANSFER = {"sources": [{"model": "zoo:gpt2", "sae": "s"}, {"model": "zoo:neox", "sae": "s"}]}


def blocks(page: Path, *languages: str, marked: bool | None = None) -> list[str]:
    """The blocks of a page in these languages; those that say that they are not run here, those that do not, or all."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        body for language, rest, body in found if language in languages and marked in (None, _MARK in rest)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_every_block_has_a_language_and_a_shell_block_says_that_it_is_not_run(page):
    kinds = {language for language, _, _ in _BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "sh", "bash", "toml", "text", "bibtex"}
    if page.name != "CONTRIBUTING.md":  # its two commands are what CI runs
        assert not blocks(page, "sh", "bash", marked=False)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "python", marked=False)], ids=lambda p: p.stem
)
def test_python_runs(page, capsys):
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    names: dict[str, object] = {}
    for body in blocks(page, "python", marked=False):
        if body in blocks(PAGES[0], "python"):
            continue  # test_readme.py runs it and reads what it prints
        exec(compile(body, page.name, "exec"), names)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml", marked=False)], ids=lambda p: p.stem)
def test_settings_are_settings(page):
    for body in blocks(page, "toml", marked=False):
        part = tomllib.loads(body)
        kind, rest = (TransferStudy, _TRANSFER) if "targets" in part else (Study, _STUDY)
        kind.model_validate(rest | part)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line that begins with `polysem`, in a block or indented."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = "".join(blocks(page, "sh", "bash")) + "\n".join(
            re.findall(r"^    (polysem .*)$", text, re.MULTILINE)
        )
        found += [
            (page.name, line) for line in re.findall(r"(?:^|&& |\d )(polysem [^#\n>&]*)", shown, re.MULTILINE)
        ]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_can_be_typed(page, line):
    verb, *words = shlex.split(line.replace("\\", ""))[1:]
    if verb in ("--help", "--version") or verb.startswith("$"):
        return
    assert verb in VERBS, f"{page}: {line}"
    VERBS[verb].make_context(verb, words, resilient_parsing=False)


@pytest.mark.parametrize(
    "page", [PAGES[0], PAGES[1], *sorted((REPOSITORY / "docs" / "design").glob("*.md"))], ids=lambda p: p.stem
)
def test_links_of_pages_that_are_read_in_the_repository_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


class _Links(HTMLParser):
    """href and src of a page, and the ids that an address can name."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append((tag, value))
            elif name == "id" and value:
                self.ids.add(value)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="mkdocs-material and mkdocstrings are not installed",
)
def test_the_site_is_built_without_a_warning_every_link_leads_somewhere_and_nothing_is_fetched(tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        if path.name == "404.html":  # it is served at any depth, so its addresses begin at the root
            continue
        for tag, link in page.links:
            if link.startswith(("http:", "https:", "//")):
                assert tag == "a", f"{path.name} fetches {link}"
            elif not link.startswith(("data:", "mailto:", "javascript:")):
                file, _, anchor = link.partition("#")
                target = (path.parent / file.partition("?")[0]).resolve() if file else path
                target = target / "index.html" if target.is_dir() else target
                assert target.exists(), f"{path.name}: {link}"
                if anchor and not anchor.startswith("__"):
                    assert anchor in pages[target].ids, f"{path.name}: {link}"
