"""What a study reads from outside its run folder, named by content: so that a changed file is seen as changed.

Local files and folders are hashed. What lies on the Hub is known by the commit that was loaded first; later stages and
later runs ask for that commit again. What lies at a web address is known by its address only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from polysem.boundary.files import local_path
from polysem.boundary.records import DATASETS, dataset_of
from polysem.config import Study
from polysem.errors import PolysemError
from polysem.glosses.shipped import SOURCE, shipped_file
from polysem.models.gguf import files_of, is_gguf
from polysem.places import Places
from polysem.registry import zoo_path
from polysem.store import io
from polysem.store.manifest import Manifest
from polysem.store.stages import REGISTRY, StageName
from polysem.transfer.config import TransferStudy
from polysem.vocabulary import similarity_folder

MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""files of a model folder that can change its numbers; checkpoints of an optimizer are not read"""


Settings = Study | TransferStudy
"""what a settings file in a run folder asks for"""


@dataclass(frozen=True)
class Pins:
    """Commits on the Hub that a run folder has settled on: reference -> commit."""

    models: Mapping[str, str]
    saes: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest | None) -> "Pins":
        """The pins that the manifest of the features stage records."""
        facts = manifest.facts if manifest else {}
        model = facts.get("model")
        return cls(
            models={model["ref"]: model["revision"]} if model else {},
            saes={sae["ref"]: sae["revision"] for sae in facts.get("saes", {}).values()},
        )


@dataclass(frozen=True)
class StudySource:
    """One thing outside: what for, which reference, and where it is if it is local."""

    role: str
    ref: str
    path: Path | None
    suffixes: tuple[str, ...] = ()
    revision: str | None = None
    """which the settings ask for"""
    files: tuple[Path, ...] = ()
    """of a model that is no folder: its GGUF file, or the parts of it in order"""

    @property
    def name(self) -> str:
        return f"{self.role} {self.ref}"


def sources_of(settings: Settings, stage: StageName, places: Places) -> list[StudySource]:
    """Everything that a stage reads from outside the run folder.

    Raises:
        UnknownReferenceError: if a `zoo:` reference does not exist.
    """
    roles = REGISTRY[stage].sources
    found = [source for source in _all(settings, places) if source.role in roles]
    if "text" in roles and isinstance(settings, Study) and (stage != "joint" or settings.joint.lift_tokens):
        found.append(replace(_Where(places).corpus(settings.corpus.ref), role="text"))
    return list({source.name: source for source in found}.values())


def content_of(
    settings: Settings,
    stage: StageName,
    *,
    places: Places,
    pins: Pins,
    recorded: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """What the sources of a stage hold now, and the names of those that could not be looked at.

    Args:
        settings: names the sources.
        stage: whose sources.
        places: where they are.
        pins: commits that were settled before.
        recorded: what a manifest says; taken for sources that are not here, e.g. on another machine.

    Raises:
        UnknownReferenceError: if a source is nowhere and nothing is recorded.
    """
    now: dict[str, str] = {}
    unseen: list[str] = []
    try:
        wanted = sources_of(settings, stage, places)
    except PolysemError as error:
        if not recorded:
            raise
        return dict(recorded), [str(error).splitlines()[0]]
    for source in wanted:
        if source.files:
            now[source.name] = f"sha256:{io.sha256_joined(source.files)}"
        elif source.path is not None and source.path.exists():
            now[source.name] = f"sha256:{io.sha256_tree(source.path, suffixes=source.suffixes)}"
        elif source.path is None:
            now[source.name] = _at_a_distance(source, pins)
        elif recorded and source.name in recorded:
            now[source.name] = recorded[source.name]
            unseen.append(f"{source.name} is not here")
        else:
            now[source.name] = "absent"
    return now, unseen


def _at_a_distance(source: StudySource, pins: Pins) -> str:
    known = {"model": pins.models, "saes": pins.saes}.get(source.role, {})
    if source.ref in known:
        return f"commit:{known[source.ref]}"
    if source.revision:
        return f"revision:{source.revision}"
    return "address" if "://" in source.ref else "unresolved"


def _all(settings: Settings, places: Places) -> Iterator[StudySource]:
    where = _Where(places)
    if isinstance(settings, TransferStudy):
        yield from _of_transfer(settings, where)
        return
    study = settings
    yield where.model(study.model.ref, study.model.revision)
    for sae in study.saes:
        yield where.sae(sae.ref)
        if sae.glosses:
            yield from where.glosses("glosses", sae.glosses)
        written = shipped_file(sae.ref) if (sae.glosses or study.glosses.source) == SOURCE else None
        if written is not None:
            yield StudySource("glosses", sae.ref, written)
    for ref in study.relations.narrow if study.relations else ():
        yield replace(where.sae(ref), role="narrow")
    yield from where.glosses("glosses", study.glosses.source)
    for folder in filter(None, (similarity_folder(measure)[1] for measure in study.glosses.similarity)):
        yield where.file("similarity", folder)
    yield from where.glosses("features", study.features.source)
    if study.features.source == "harvest" or study.prompts.source == "corpus":
        yield where.corpus(study.corpus.ref)
    if study.prompts.source.startswith("file:"):
        yield where.file("prompts", study.prompts.source)
    for vector in study.vectors:
        yield where.file("vectors", vector.ref)
    for one in study.transcoders:
        yield where.transcoders(one.ref)


def _of_transfer(study: TransferStudy, where: "_Where") -> Iterator[StudySource]:
    for source in study.sources:
        yield where.model(source.model, source.revision)
        yield where.sae(source.sae)
    for target in study.targets:
        if target.kind == "local":
            yield where.model(target.model, None)
            if target.sae is not None:
                yield where.sae(target.sae)
    for ref in (study.corpus.ref, study.cost.corpus):
        if ref is not None:
            yield where.corpus(ref)
    for ref in (study.categories.table, study.categories.sentences, study.cost.choices):
        if ref is not None and ref != "builtin":
            yield where.file("words", ref)


@dataclass(frozen=True)
class _Where:
    """References as sources: named as they are written, looked for where they are."""

    places: Places

    def model(self, ref: str, revision: str | None) -> StudySource:
        there = self.places.find(ref, or_name=True)
        files = tuple(files_of(there)[0]) if is_gguf(there) else ()
        return StudySource(
            "model", ref, None if files else _model_path(there), MODEL_SUFFIXES, revision, files
        )

    def sae(self, ref: str) -> StudySource:
        return StudySource("saes", ref, _sae_path(self.places.find(ref)))

    def transcoders(self, ref: str) -> StudySource:
        return StudySource("transcoders", ref, _sae_path(self.places.find(ref), kind="transcoders"))

    def corpus(self, ref: str) -> StudySource:
        revision = dataset_of(ref)[1]["revision"] if ref.startswith(DATASETS) else None
        return StudySource("corpus", ref, _corpus_path(self.places.find(ref)), revision=revision)

    def file(self, role: str, ref: str) -> StudySource:
        return StudySource(role, ref, local_path(self.places.find(ref).removeprefix("file:")))

    def glosses(self, role: str, ref: str) -> Iterator[StudySource]:
        """`file:PATH` and `neuronpedia:REST`, each with `#NAME` perhaps; words without a colon read nothing from outside."""
        kind, _, rest = self.places.find(ref, or_name=True).partition(":")
        if kind in ("file", "neuronpedia"):
            candidates = (local_path(rest), local_path(rest.rpartition("#")[0] or rest))
            path = next((p for p in candidates if p.exists()), None)
            yield StudySource(role, ref, candidates[-1] if path is None and kind == "file" else path)


def is_local(ref: str) -> bool:
    """Whether a model lies on this machine, so that its revision is its content's and no commit is settled."""
    return is_gguf(ref) or _model_path(ref) is not None


def _model_path(ref: str) -> Path | None:
    if ref.startswith("zoo:"):
        return zoo_path("models", ref.removeprefix("zoo:"))
    return local_path(ref) if local_path(ref).is_dir() else None


def _sae_path(ref: str, *, kind: str = "saes") -> Path | None:
    if ref.startswith(("zoo:", "zoo-real:")):
        return zoo_path(kind, ref)
    return None if ref.startswith(("saelens:", "hub:")) else local_path(ref)


def _corpus_path(ref: str) -> Path | None:
    if ref.startswith(DATASETS):
        return None
    return zoo_path("texts", ref.removeprefix("zoo:")) if ref.startswith("zoo:") else local_path(ref)
