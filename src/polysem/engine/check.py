"""What can be wrong with a study and be seen without a forward pass: before a run folder is made.

Every part is looked at, so that all of what is wrong is said at once. Weights on the Hub and glosses at a web address are not
fetched.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from polysem.config import SAEConfig, Study
from polysem.engine.cache import check_named, sae_labels
from polysem.engine.context import given_transcoders, given_vectors
from polysem.errors import ConfigError, MismatchError, PolysemError, StoreError
from polysem.places import Places
from polysem.positions import PLAIN

if TYPE_CHECKING:
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE

BYTES_PER_FEATURE = 8_192
"""with its embedding, contexts and pairs; measured on the demo (5.7 kB), rounded up"""
BYTES_PER_TRIAL = 128
"""with its rows of the plan, the response and the effects; measured on the demo (96), rounded up"""

T = TypeVar("T")


@dataclass
class Checked:
    """What was found."""

    problems: list[PolysemError] = field(default_factory=list)
    """in the order of the study"""
    unseen: list[str] = field(default_factory=list)
    """what could not be looked at, in words"""

    def attempt(self, look: Callable[[], T]) -> T | None:
        """What `look` gives, or None and one more problem."""
        try:
            return look()
        except PolysemError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)
            return None

    def refuse(self) -> None:
        """Raise what was found: the one problem as it is, or all of them as one ConfigError."""
        if not self.problems:
            return
        if len(self.problems) == 1:
            raise self.problems[0]
        lines = [f"{len(self.problems)} things are wrong with the study:"]
        raise ConfigError("\n".join([*lines, *(f"- {error}" for error in self.problems)]))


def check_study(study: Study, places: Places, out: Path) -> Checked:
    """Look at everything that a study names and asks for.

    Args:
        study: as it is written.
        places: where its files are.
        out: the run folder that is to be, for its disk.

    Returns:
        What is wrong, each as the error that a run would end with, and what could not be looked at.
    """
    from polysem.glosses.similarity import open_measure
    from polysem.saes import load_sae

    checked, there = Checked(), places.settings(study)
    model = _model(there, checked)
    saes = [_sae(entry, model, there.features.source, checked) for entry in there.saes]
    checked.attempt(lambda: _labels(study, saes))
    for entry, sae in zip(there.saes, saes, strict=True):
        if sae:
            _glosses(entry.glosses or there.glosses.source, sae, checked)
    for ref in there.relations.narrow if there.relations else ():
        if ref.startswith(("saelens:", "hub:")):
            checked.unseen.append(f"SAE {ref}, which lies on the Hub")
        else:
            checked.attempt(lambda ref=ref: load_sae(ref))
    for measure in there.glosses.similarity:
        checked.attempt(lambda measure=measure: open_measure(measure))
    first = next((sae for sae in saes if sae), None)
    if there.vectors and model and first:
        checked.attempt(lambda: given_vectors(there, model, first.writes))
    for entry in there.transcoders:
        checked.attempt(lambda entry=entry: given_transcoders(entry, None))
    _texts(there, model, checked)
    checked.attempt(lambda: _thresholds(there, [sae.d_sae for sae in saes if sae]))
    checked.attempt(lambda: _disk(there, sum(sae.d_sae for sae in saes if sae), out))
    return checked


def _model(study: Study, checked: Checked) -> "WhiteBoxModel | None":
    from polysem.models.load import load_outline

    return checked.attempt(lambda: load_outline(study.model.ref, revision=study.model.revision))


def _sae(entry: SAEConfig, model: "WhiteBoxModel | None", source: str, checked: Checked) -> "SAE | None":
    from polysem.features.table import shipped_folder
    from polysem.saes import load_sae
    from polysem.saes.load import check_match

    if entry.ref.startswith(("saelens:", "hub:")):
        checked.unseen.append(f"SAE {entry.ref}, which lies on the Hub")
        return None
    if source == "zoo":
        checked.attempt(lambda: shipped_folder(entry.label or entry.site or "", entry.ref))
    sae = checked.attempt(lambda: load_sae(entry.ref, site=entry.site))
    if sae and model:
        checked.attempt(lambda: check_match(sae, model, compare_ids=not entry.allow_other_model))
    return sae


def _labels(study: Study, saes: "list[SAE | None]") -> None:
    # an SAE that could not be read has a site of its own
    sites = [str(sae.reads) if sae else f"{n}" for n, sae in enumerate(saes)]
    labels = sae_labels(study.saes, sites)
    if all(saes):
        check_named(study, labels)


def _glosses(source: str, sae: "SAE", checked: Checked) -> None:
    from polysem.glosses import read_glosses, shipped_glosses
    from polysem.glosses.export import is_remote
    from polysem.glosses.read import split_name

    if source == "tokens":
        return
    if source == "zoo":
        checked.attempt(lambda: shipped_glosses(sae.provenance.ref, d_sae=sae.d_sae))
        return
    kind, _, place = source.partition(":")
    if kind == "neuronpedia" and is_remote(split_name(place)[0]):
        checked.unseen.append(f"glosses {source}, which lie at a web address")
        return
    checked.attempt(lambda: read_glosses(source, d_sae=sae.d_sae, site=sae.reads, model_id=sae.model_id))


def _texts(study: Study, model: "WhiteBoxModel | None", checked: Checked) -> None:
    from polysem.boundary.records import DATASETS, dataset_of
    from polysem.corpus import documents
    from polysem.prompts import make_prompts

    source = study.prompts.source
    if study.features.source == "harvest" or source == "corpus":
        ref = study.corpus.ref
        if ref.startswith(DATASETS):
            checked.attempt(lambda: dataset_of(ref))
            checked.unseen.append(f"corpus {ref}, which lies on the Hub")
        else:
            checked.attempt(lambda: next(documents(ref), None))
        if model and study.corpus.context > model.spec.n_ctx:
            error = MismatchError(
                f"corpus.context is {study.corpus.context} tokens, but {study.model.ref} reads at most {model.spec.n_ctx}",
                hint=f"set corpus.context = {model.spec.n_ctx} in the study",
            )
            checked.problems.append(error)
    if source != "corpus" and model:
        checked.attempt(
            lambda: make_prompts(study.prompts, study.corpus, model, positions=PLAIN, seed=study.seed)
        )


def _thresholds(study: Study, sizes: list[int]) -> None:
    least, edges = study.pairs.min_interference, study.pairs.bins
    if least >= edges[-1]:
        raise ConfigError(
            f"pairs.min_interference is {least}, but the last edge of pairs.bins is {edges[-1]}: no pair lies between them",
            hint=f"set pairs.min_interference below {edges[-1]}, or pairs.bins up to 1.0",
        )
    asked = study.plan.n_targets * (1 + study.plan.sources_per_bin)
    small = [size for size in sizes if size < asked]
    if small:
        raise ConfigError(
            f"plan.n_targets = {study.plan.n_targets} with {study.plan.sources_per_bin} sources in a bin need {asked} features, "
            f"but an SAE has {min(small)}",
            hint=f"set plan.n_targets = {max(1, min(small) // (1 + study.plan.sources_per_bin))}",
        )


def _disk(study: Study, n_features: int, out: Path) -> None:
    plan = study.plan
    arms = plan.sources_per_bin * (len(study.pairs.bins) - 1) + plan.n_random * len(plan.controls) + 1
    trials = len(study.saes) * plan.n_targets * arms * 2 * len(plan.doses) * study.prompts.n * len(plan.loci)
    need = n_features * BYTES_PER_FEATURE + trials * BYTES_PER_TRIAL
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StoreError(
            f"{folder} has {free / 1e9:.1f} GB free; the run folder takes about {need / 1e9:.1f} GB",
            hint="choose another --out, or free some space",
        )
