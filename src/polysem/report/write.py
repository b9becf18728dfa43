"""From a run folder to one HTML file: reads tables and manifests, fills the template, forbids the page to
load or send anything."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from polysem.report import text
from polysem.report.page import context
from polysem.report.source import Run
from polysem.store import io

NAME = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder; gives its path.

    Works on unfinished runs too: a section whose stage is absent says so and names the command. Equal tables
    and manifests give equal
    bytes: the page holds no time, host or path.

    Raises:
        StoreError: if the folder is no run, a table or manifest is damaged, or the file cannot be written.
        ConfigError: if the run's study file is not one.
    """
    path = run_dir / NAME
    io.write_text(path, render(Run.open(run_dir)))
    return path


def render(run: Run) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("polysem.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "visible": text.visible,
        "number": text.number,
        "fixed": text.fixed,
        "count": text.count,
        "p_value": text.p_value,
    }
    environment.globals["embed_json"] = text.embed_json
    style, script = _asset("report.css"), _asset("report.js")
    page = environment.get_template("report.html.j2")
    return page.render(style=style, script=script, policy=_policy(style, script), **context(run))


def _asset(name: str) -> Markup:
    """A style sheet or script of this package, which is ours and needs no escaping."""
    return Markup(files("polysem.report").joinpath("templates", name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """Content security policy: this style, this script, nothing else from anywhere."""
    parts: dict[str, Any] = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    parts |= {"style-src": _hash(style), "script-src": _hash(script)}
    return "; ".join(f"{key} {value}" for key, value in parts.items())


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
