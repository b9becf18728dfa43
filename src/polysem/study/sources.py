"""What a study reads from outside its run folder, named by content: so that a changed file is seen as changed.

Local files and folders are hashed. What lies on the Hub is known by the commit that was loaded first; later stages and
later runs ask for that commit again. What lies at a web address is known by its address only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polysem.config import Study
from polysem.errors import PolysemError
from polysem.registry import zoo_path
from polysem.store import io
from polysem.store.manifest import Manifest
from polysem.store.stages import NEEDS, Stage

MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""files of a model folder that can change its numbers; checkpoints of an optimizer are not read"""


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
class Source:
    """One thing outside: what for, which reference, and where it is if it is local."""

    role: str
    ref: str
    path: Path | None
    suffixes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.role} {self.ref}"


def sources_of(study: Study, stage: Stage) -> list[Source]:
    """Everything that a stage reads from outside the run folder.

    Raises:
        UnknownReferenceError: if a `zoo:` reference does not exist.
    """
    roles = NEEDS[stage].sources
    found = [source for source in _all(study) if source.role in roles]
    return list({source.name: source for source in found}.values())


def content_of(
    study: Study, stage: Stage, *, pins: Pins, recorded: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """What the sources of a stage hold now, and the names of those that could not be looked at.

    Args:
        study: names the sources.
        stage: whose sources.
        pins: commits that were settled before.
        recorded: what a manifest says; taken for sources that are not here, e.g. on another machine.

    Raises:
        UnknownReferenceError: if a source is nowhere and nothing is recorded.
    """
    now: dict[str, str] = {}
    unseen: list[str] = []
    try:
        wanted = sources_of(study, stage)
    except PolysemError as error:
        if not recorded:
            raise
        return dict(recorded), [str(error).splitlines()[0]]
    for source in wanted:
        if source.path is not None and source.path.exists():
            now[source.name] = f"sha256:{io.sha256_tree(source.path, suffixes=source.suffixes)}"
        elif source.path is None:
            now[source.name] = _at_a_distance(study, source, pins)
        elif recorded and source.name in recorded:
            now[source.name] = recorded[source.name]
            unseen.append(f"{source.name} is not here")
        else:
            now[source.name] = "absent"
    return now, unseen


def _at_a_distance(study: Study, source: Source, pins: Pins) -> str:
    known = {"model": pins.models, "saes": pins.saes}.get(source.role, {})
    if source.ref in known:
        return f"commit:{known[source.ref]}"
    if source.role == "model" and study.model.revision:
        return f"revision:{study.model.revision}"
    return "address" if "://" in source.ref else "unresolved"


def _all(study: Study) -> Iterator[Source]:
    yield Source("model", study.model.ref, _model_path(study.model.ref), MODEL_SUFFIXES)
    for sae in study.saes:
        yield Source("saes", sae.ref, _sae_path(sae.ref))
        if sae.glosses:
            yield from _gloss_source("glosses", sae.glosses)
    yield from _gloss_source("glosses", study.glosses.source)
    yield from _gloss_source("features", study.features.source)
    if study.features.source == "harvest" or study.prompts.source == "corpus":
        yield Source("corpus", study.corpus.ref, _corpus_path(study.corpus.ref))
    if study.prompts.source.startswith("file:"):
        yield Source("prompts", study.prompts.source, _local(study.prompts.source.removeprefix("file:")))


def _model_path(ref: str) -> Path | None:
    if ref.startswith("zoo:"):
        return zoo_path("models", ref.removeprefix("zoo:"))
    return _local(ref) if _local(ref).is_dir() else None


def _sae_path(ref: str) -> Path | None:
    if ref.startswith("zoo:"):
        return zoo_path("saes", ref.removeprefix("zoo:"))
    return None if ref.startswith(("saelens:", "hub:")) else _local(ref)


def _corpus_path(ref: str) -> Path:
    return zoo_path("texts", ref.removeprefix("zoo:")) if ref.startswith("zoo:") else _local(ref)


def _gloss_source(role: str, ref: str) -> Iterator[Source]:
    """`file:PATH` and `neuronpedia:REST`, each with `#NAME` perhaps; words without a colon read nothing from outside."""
    kind, _, rest = ref.partition(":")
    if kind in ("file", "neuronpedia"):
        candidates = (_local(rest), _local(rest.rpartition("#")[0] or rest))
        path = next((p for p in candidates if p.exists()), None)
        yield Source(role, ref, candidates[-1] if path is None and kind == "file" else path)


def _local(ref: str) -> Path:
    return Path(ref).expanduser()
