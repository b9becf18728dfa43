"""The feature table: what each feature fires on and writes, how it is glossed, and where its glosses lie.

`build_features` is the stage of a study; `feature_table` is the same for one SAE in a Python session. Both
take activations from one pass over a corpus, or from a Neuronpedia export. Cost: one forward pass over the
corpus, plus the embedding of the glosses.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import CorpusConfig, FeaturesConfig, GlossesConfig, Study, section_of
from polysem.errors import ConfigError
from polysem.features.columns import context_table, harvest_table, with_glosses
from polysem.glosses import (
    Embedded,
    Gloss,
    embed_glosses,
    gloss_clusters,
    read_glosses,
    read_neuronpedia_features,
    shipped_glosses,
    token_glosses,
)
from polysem.models.base import WhiteBoxModel
from polysem.positions import StandIn, positions_of
from polysem.progress import SILENT, Reporter
from polysem.registry import zoo_path
from polysem.saes.base import SAE
from polysem.store.io import read_table
from polysem.store.result import Result
from polysem.store.schema import Schema
from polysem.store.tables import CLUSTERS, CONTEXTS, FEATURES, GLOSSES

log = logging.getLogger(__name__)

HELD_BYTES = 2 << 30
"""weights of SAEs that go through the corpus together; encoders and what they fired on take about as much
again"""


@dataclass(frozen=True, repr=False)
class FeatureTable(Result):
    """Features of one or more SAEs."""

    figure = "polysem.report.figures:features"

    features: pa.Table
    """FEATURES"""
    glosses: pa.Table
    """GLOSSES"""
    contexts: pa.Table
    """CONTEXTS"""
    clusters: pa.Table
    """CLUSTERS"""
    embeddings: dict[str, np.ndarray]
    """by SAE label, [n_features d_embed] float32 unit rows in the order of the SAE's rows in `features`;
    zero without a gloss"""
    embedder: tuple[str, str] = ("", "")
    """name and sha256 of what made the embeddings"""
    corpus: str | None = None
    """the text that one pass read; prompts are drawn from it, too, where nobody says otherwise"""


def build_features(
    study: Study,
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    workdir: Path,
    reporter: Reporter = SILENT,
) -> FeatureTable:
    """The feature table of a study.

    Args:
        study: the sections corpus, features, glosses, saes.
        model: the model that the SAEs belong to.
        saes: by label, in the order of `study.saes`.
        workdir: folder for checkpoints of an unfinished pass and for cached embeddings.
        reporter: is told of progress.

    Raises:
        PolysemError: of the corpus, the glosses, the embedder or the numbers; names file and value.
    """
    own = {
        label: entry.glosses or study.glosses.source for label, entry in zip(saes, study.saes, strict=True)
    }
    return _build(
        model,
        saes,
        corpus=study.corpus,
        features=study.features,
        glosses=study.glosses,
        gloss_sources=own,
        workdir=workdir,
        reporter=reporter,
    )


def feature_table(
    sae: SAE,
    model: WhiteBoxModel,
    *,
    glosses: str = "tokens",
    embedder: str = "minilm",
    corpus: str | CorpusConfig = "zoo:samples",
    n_tokens: int = 200_000,
    context: int = 128,
    n_contexts: int = 12,
    source: str = "harvest",
    label: str | None = None,
    workdir: Path | None = None,
    reporter: Reporter = SILENT,
) -> FeatureTable:
    """The feature table of one SAE.

    Args:
        sae: the SAE.
        model: the model that it belongs to.
        glosses: `tokens`, `zoo`, `neuronpedia:FOLDER_OR_URL` or `file:PATH`.
        embedder: as `glosses.embedder` of a study.
        corpus: as `corpus.ref` of a study, or a whole section, which then says `n_tokens` and `context` itself.
        n_tokens: tokens of the corpus to run.
        context: tokens of a row, BOS included.
        n_contexts: contexts kept per feature.
        source: `harvest`, `zoo` for the table that comes with a zoo SAE, or
            `neuronpedia:FOLDER_OR_URL` to take activations from an export.
        label: name of the SAE in the tables; None takes its site.
        workdir: folder for checkpoints and cached embeddings; None keeps nothing.
        reporter: is told of progress.

    Raises:
        PolysemError: as `build_features`.
    """
    name = label or str(sae.reads)
    made = _build(
        model,
        {name: sae},
        corpus=corpus
        if isinstance(corpus, CorpusConfig)
        else section_of(CorpusConfig, {"ref": corpus, "n_tokens": n_tokens, "context": context}),
        features=section_of(FeaturesConfig, {"source": source, "n_contexts": n_contexts}),
        glosses=section_of(GlossesConfig, {"source": glosses, "embedder": embedder}),
        gloss_sources={name: glosses},
        workdir=workdir,
        reporter=reporter,
    )
    read = corpus.ref if isinstance(corpus, CorpusConfig) else corpus
    return replace(made, corpus=read if source == "harvest" else None)


def worded(
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    corpus: CorpusConfig,
    embedder: str,
    reporter: Reporter = SILENT,
) -> FeatureTable:
    """Feature tables of dictionaries that no study lists, encoders of transcoders above all: their features fire on one corpus,
    and have token glosses.

    Args:
        model: the model that they belong to.
        saes: by label.
        corpus: text.
        embedder: of the glosses.
        reporter: is told of progress.

    Raises:
        PolysemError: as `build_features`.
    """
    return _build(
        model, saes, corpus=corpus, features=FeaturesConfig(), glosses=GlossesConfig(embedder=embedder, cluster_cuts=()),
        gloss_sources=dict.fromkeys(saes, "tokens"), workdir=None, reporter=reporter,
    )  # fmt: skip


def _build(
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    *,
    corpus: CorpusConfig,
    features: FeaturesConfig,
    glosses: GlossesConfig,
    gloss_sources: Mapping[str, str],
    workdir: Path | None,
    reporter: Reporter,
) -> FeatureTable:
    made: dict[str, _Made] = {}
    for number, group in enumerate(_groups(saes)):
        if features.source == "harvest":
            activity = _harvested(model, group, corpus, features, workdir, number, reporter)
        elif features.source == "zoo":
            activity = {label: _shipped(label, sae) for label, sae in group.items()}
        else:
            activity = {label: _exported(label, sae, model, features) for label, sae in group.items()}
        for label, sae in group.items():
            rows, contexts = activity.pop(label)
            own = _glosses(gloss_sources[label], rows, contexts, sae)
            embedded = embed_glosses(
                _primary_source(own),
                rows["feature"].to_numpy(),
                glosses.embedder,
                cache=workdir and workdir / "embeddings",
                reporter=reporter,
            )
            clusters = _cluster_rows(
                label, rows["feature"].to_numpy(), embedded.vectors, glosses.cluster_cuts
            )
            made[label] = _Made(
                with_glosses(rows, own), _gloss_rows(label, own), contexts, clusters, embedded
            )
    parts = [made[label] for label in saes]
    return FeatureTable(
        FEATURES.conform(pa.concat_tables([part.features for part in parts])),
        GLOSSES.conform(pa.concat_tables([part.glosses for part in parts])),
        CONTEXTS.conform(pa.concat_tables([part.contexts for part in parts])),
        CLUSTERS.conform(pa.concat_tables([part.clusters for part in parts])),
        {label: made[label].embedded.vectors for label in saes},
        (parts[-1].embedded.name, _one_hash([part.embedded.sha256 for part in parts])),
    )


class _Made(NamedTuple):
    """What is kept of one SAE."""

    features: pa.Table
    glosses: pa.Table
    contexts: pa.Table
    clusters: pa.Table
    embedded: Embedded


def _groups(saes: Mapping[str, SAE]) -> Iterator[dict[str, SAE]]:
    """SAEs that go through the corpus together: those that agree on BOS, until their weights are more than is
    held at once. Every SAE is looked up once."""
    waiting: dict[tuple[bool, StandIn], dict[str, SAE]] = {}
    for label, sae in saes.items():
        begun = sae.prepend_bos, sae.bos_stand_in
        group = waiting.get(begun, {})
        if group and sae.nbytes + sum(other.nbytes for other in group.values()) > HELD_BYTES:
            yield group
            group = {}
        waiting[begun] = {**group, label: sae}
    yield from (group for group in waiting.values() if group)


def _one_hash(hashes: list[str]) -> str:
    """The embedder's hash; vectors of an export are hashed by SAE, and those hashes are hashed together."""
    if len(set(hashes)) == 1:
        return hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _harvested(
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    corpus: CorpusConfig,
    features: FeaturesConfig,
    workdir: Path | None,
    number: int,
    reporter: Reporter,
) -> dict[str, tuple[pa.Table, pa.Table]]:
    """FEATURES and CONTEXTS of a group of SAEs, the group's number naming its checkpoint."""
    from polysem.corpus import token_rows
    from polysem.features.best import HarvestPlan
    from polysem.features.harvest import harvest

    plan = HarvestPlan(features.n_contexts, features.window, features.n_target_tokens)
    positions = positions_of(model, next(iter(saes.values())))
    log.info("positions: %s; the first of each row and massive tokens are not counted", positions.said)
    rows = token_rows(
        corpus.ref, model, n_tokens=corpus.n_tokens, context=corpus.context, positions=positions
    )
    checkpoint = None
    if workdir:
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoint = workdir / f"harvest-{number:02d}.safetensors"
    states = harvest(model, saes, rows, plan=plan, checkpoint=checkpoint, reporter=reporter)
    return {
        label: (
            harvest_table(label, sae, states[label], model, features, rows),
            context_table(label, states[label], rows, model),
        )
        for label, sae in saes.items()
    }


def shipped_folder(label: str, ref: str) -> Path:
    """Where the tables that come with a zoo SAE are. Raises ConfigError if it is none."""
    if not ref.startswith("zoo:"):
        raise ConfigError(
            f"features.source is 'zoo', but the SAE {label} is {ref}, which is not of the zoo",
            hint='set features.source = "harvest"',
        )
    return zoo_path("features", ref.removeprefix("zoo:"))


def _shipped(label: str, sae: SAE) -> tuple[pa.Table, pa.Table]:
    """The tables that come with a zoo SAE, under the study's label for it."""
    folder = shipped_folder(label, sae.provenance.ref)

    def relabelled(schema: Schema) -> pa.Table:
        path = folder / f"{schema.name}.parquet"
        table = read_table(path, schema, rebuild="pip install --force-reinstall polysem-zoo")
        at = table.schema.get_field_index("sae")
        return table.set_column(at, schema.arrow().field("sae"), pa.array([label] * table.num_rows))

    return relabelled(FEATURES), relabelled(CONTEXTS)


def _exported(
    label: str, sae: SAE, model: WhiteBoxModel, features: FeaturesConfig
) -> tuple[pa.Table, pa.Table]:
    read = read_neuronpedia_features(
        features.source,
        label,
        site=sae.reads,
        d_sae=sae.d_sae,
        model_id=sae.model_id,
        tokenize_string=lambda text: model.tokenize(text, prepend_bos=False),
        # Published activations are in unit-decoder units; the SAE record is in the units of its file.
        dec_norms=sae.W_dec.detach().float().norm(dim=1).cpu().numpy(),
        n_contexts=features.n_contexts,
        window=features.window,
        target_ratio=features.target_ratio,
        n_target_tokens=features.n_target_tokens,
    )
    return read.features, read.contexts


def _glosses(source: str, rows: pa.Table, contexts: pa.Table, sae: SAE) -> list[Gloss]:
    """All glosses of an SAE: those of the source first, then the token gloss of every feature that fires.

    What a feature promotes says nothing about one that never fired: it would be mined and steered as if
    known.
    """
    alive = set(rows.filter(pc.fill_null(pc.not_equal(rows["n_active"], 0), True))["feature"].to_pylist())
    made = [gloss for gloss in token_glosses(rows, contexts) if gloss.feature in alive]
    if source == "tokens":
        return made
    if source == "zoo":
        read = shipped_glosses(sae.provenance.ref, d_sae=sae.d_sae)
    else:
        read = read_glosses(source, d_sae=sae.d_sae, site=sae.reads, model_id=sae.model_id)
    known = set(rows["feature"].to_pylist())
    return [g for g in read if g.feature in known] + made


def _primary_source(glosses: list[Gloss]) -> list[Gloss]:
    """What a feature's vector is made from: the glosses of its first source; a made gloss counts only where
    no other is."""
    first: dict[int, str] = {}
    for gloss in glosses:
        first.setdefault(gloss.feature, gloss.source)
    return [g for g in glosses if g.source == first[g.feature]]


def _gloss_rows(label: str, glosses: list[Gloss]) -> pa.Table:
    ordered = sorted(glosses, key=lambda gloss: gloss.feature)
    feature = np.array([gloss.feature for gloss in ordered], dtype=np.int32)
    columns = {
        "sae": pa.array([label] * len(ordered), pa.string()),
        "feature": pa.array(feature),
        # Places among glosses of the same feature, which stand together.
        "gloss_index": pa.array(
            (np.arange(len(ordered)) - np.searchsorted(feature, feature)).astype(np.int32)
        ),
        "text": pa.array([gloss.text for gloss in ordered], pa.string()),
        "source": pa.array([gloss.source for gloss in ordered], pa.string()),
        "explainer": pa.array([gloss.explainer for gloss in ordered], pa.string()),
    }
    return pa.table(columns, schema=GLOSSES.arrow())


def _cluster_rows(label: str, ids: np.ndarray, vectors: np.ndarray, cuts: tuple[float, ...]) -> pa.Table:
    if not cuts or not vectors.any():
        return CLUSTERS.empty()
    parts = []
    for cut, cluster in gloss_clusters(vectors, cuts).items():
        kept = cluster >= 0
        parts.append(
            pa.table(
                {
                    "sae": pa.array([label] * int(kept.sum())),
                    "feature": pa.array(ids[kept], pa.int32()),
                    "similarity_cut": pa.array(np.full(kept.sum(), cut)),
                    "cluster": pa.array(cluster[kept], pa.int32()),
                },
                schema=CLUSTERS.arrow(),
            )
        )
    return pa.concat_tables(parts)
