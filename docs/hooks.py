"""What mkdocs asks of us while it builds the site: notebooks and the repository's own pages become pages of it."""

import html
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "zoo.md": "zoo/README.md"}
"""pages of the site that lie elsewhere in the repository"""
_LINK = re.compile(r"(?<!!)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
_OUTPUTS: dict[str, list[str]] = {}
"""source path of a notebook's page -> HTML of its outputs, which Markdown must not touch"""


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every notebook (with the outputs that it keeps) and for the pages of the repository's root."""
    for name, source in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        folder = Path(source).parent
        files.append(File.generated(config, name, content=_LINK.sub(partial(_moved, folder=folder), text)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{path.stem}.md"
        text, _OUTPUTS[page] = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        text += f"\n\n[This notebook]({path.name}) runs as it stands.\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Puts a notebook's outputs where its cells are."""
    for n, shown in enumerate(_OUTPUTS.get(page.file.src_uri, ())):
        content = content.replace(f"<p>OUTPUT{n}OUTPUT</p>", shown)
    return content


def notebook_page(notebook: dict[str, Any]) -> tuple[str, list[str]]:
    """(Markdown of the cells with a mark for each output, HTML of the outputs)."""
    parts, outputs = [], []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for out in cell.get("outputs", ()):
            data = out.get("data", {"text/plain": out.get("text", [])})
            shown = (
                "".join(data.get("text/html", ())) or f"<pre>{html.escape(''.join(data['text/plain']))}</pre>"
            )
            parts.append(f"OUTPUT{len(outputs)}OUTPUT")
            outputs.append(f'<div class="cell-output">{shown}</div>')
    return "\n\n".join(parts), outputs


def _moved(link: re.Match[str], folder: Path) -> str:
    """A link of a page that the site shows elsewhere: to the site's page if there is one, else the path as code."""
    path, _, anchor = link[1].partition("#")
    target = (folder / path).as_posix()
    inside = {source: name for name, source in FROM_ROOT.items()}.get(target)
    if target.startswith("docs/") and target.endswith(".md"):
        inside = target.removeprefix("docs/")
    return f"]({inside}{'#' + anchor if anchor else ''})" if inside else "](index.md)"
