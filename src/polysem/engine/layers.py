"""`polysem layers`: the weights from every dictionary of a study to those of later layers, in parts by who writes.

    layers/NN-{layer_blocks,layer_density,layer_edges,layer_tokens,layer_findings,layer_splice}.parquet

NN is the place of an SAE among the sorted labels, or behind them that of a set of transcoders, all of whose layers are one
part. SAEs write to SAEs and to transcoders, transcoders to SAEs and to later layers of their own set. The part of a set has the
splice test, too. A run that is killed costs the part it was at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import CorpusConfig
from polysem.engine.context import StudyContext
from polysem.engine.options import LayersOptions
from polysem.engine.task import Made, Tables, Task
from polysem.errors import ConfigError
from polysem.glosses.embed import EXPORT
from polysem.progress import Reporter
from polysem.store.run import Part
from polysem.store.stages import REGISTRY

if TYPE_CHECKING:
    from polysem.layers.ends import Ends
    from polysem.layers.run import Glosses

LONGEST = 64
"""tokens of a row at most: events are run again row by row"""
SPLICED = 8192
"""tokens of the splice test"""


@dataclass(frozen=True)
class _Writes:
    """A dictionary that may write, read when it is asked for."""

    label: str
    family: str
    """the set it belongs to; "" for an SAE"""
    ends: Callable[[], "Ends"]


def make(task: Task) -> Made | None:
    """The tables, one part for each SAE and set of transcoders that writes."""
    context = task.context
    groups = _groups(context, sorted(context.saes))
    _check([one for group in groups for one in group])

    glosses = cache(lambda: _glosses(context, _corpus(context, task.options)))

    def one(part: Part, reporter: Reporter) -> Tables:
        return compute(context, groups[part.k], task.options, glosses())

    return task.in_parts(one)


def compute(
    context: StudyContext, sources: Sequence[_Writes], options: LayersOptions, glosses: "Glosses"
) -> dict[str, pa.Table]:
    """The tables of some sources."""
    from polysem.corpus import token_rows
    from polysem.layers.run import LayersPlan, across
    from polysem.positions import positions_of

    study, model = context.study, context.model
    corpus = _corpus(context, options)
    plan = LayersPlan(
        n_sources=options.sources, n_prompts=options.prompts, n_events=options.events, n_edges=options.edges,
        n_steered=options.steered,
    )  # fmt: skip
    every = [one for group in _groups(context, list(context.saes)) for one in group]
    found: dict[str, list[dict[str, Any]]] = {schema.name: [] for schema in REGISTRY["layers"].tables}
    for source in sources:
        own = source.ends()
        rows = token_rows(
            corpus.ref, model, n_tokens=corpus.n_tokens, context=corpus.context, positions=positions_of(model, own.encoder),
        )  # fmt: skip
        others = [
            one.ends() for one in every if one.label != source.label and _may(source.family, one.family)
        ]
        made = across(model, own, others, rows, plan=plan, glosses=glosses, seed=study.seed)
        for name, more in made.items():
            found[name] += more
        if source.family and source is sources[0]:
            found["layer_splice"] = _spliced(context, source.family, rows.tokens)
    return {schema.name: schema.of_rows(found[schema.name]) for schema in REGISTRY["layers"].tables}


def _groups(context: StudyContext, labels: Sequence[str]) -> list[list[_Writes]]:
    """The dictionaries of a study by part: each SAE, in the order of its labels, then each set of transcoders."""
    from polysem.layers.ends import Ends

    saes = [[_Writes(label, "", lambda label=label: Ends.of(label, context.saes[label]))] for label in labels]
    sets = [
        [
            _Writes(label, name, lambda label=label, one=one: Ends.of(label, one))
            for one in found.layers
            for label in [f"{name}.{one.reads.layer}"]
        ]
        for name, found in context.transcoders.items()
    ]
    return saes + sets


def _may(source: str, target: str) -> bool:
    """Whether weights are asked for: sets of transcoders are models of the same layers, and do not write to each other."""
    return not (source and target) or source == target


def _check(every: Sequence[_Writes]) -> None:
    """Raises ConfigError where no dictionary is read by a later one, or two have one label."""
    from polysem.layers.ends import linked

    labels = [one.label for one in every]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(
            f"two dictionaries have the label {repeated[0]!r}; expected each label once",
            hint="give the transcoders a label of their own: label in [[transcoders]]",
        )
    ends = [(one.family, one.ends()) for one in every]
    if not any(linked(a, b) for own, a in ends for other, b in ends if _may(own, other)):
        sites = ", ".join(f"{one.label} ({one.first} -> {one.reads})" for _, one in ends)
        raise ConfigError(
            f"no dictionary of the study is read by one of a later layer: {sites}",
            hint="add a dictionary of the residual stream of a later layer to [[saes]]",
        )


def _corpus(context: StudyContext, options: LayersOptions) -> CorpusConfig:
    """The study's corpus, as much of it as is asked for, in rows that are not too long."""
    corpus = context.study.corpus
    return corpus.model_copy(
        update={"n_tokens": options.tokens or corpus.n_tokens, "context": min(corpus.context, LONGEST)}
    )


def _spliced(context: StudyContext, name: str, tokens: np.ndarray) -> list[dict[str, Any]]:
    import torch

    from polysem.layers.splice import splice_rows
    from polysem.models.hf import HFModel

    model = context.model
    if not isinstance(model, HFModel):  # worlds have no modules whose output could be replaced
        return []
    some = tokens[: max(2, SPLICED // tokens.shape[1])]
    return splice_rows(model, name, context.transcoders[name], torch.from_numpy(some.astype(np.int64)))


def _glosses(context: StudyContext, corpus: CorpusConfig) -> "Glosses":
    """Glosses of the study's SAEs as they stand in its tables; of transcoders from what their features fire on."""
    from polysem.features.table import worded
    from polysem.layers.run import Glosses

    tables, embeddings = [context.features.features], dict(context.features.embeddings)
    encoders = {
        f"{name}.{one.reads.layer}": one.encoder
        for name, found in context.transcoders.items()
        for one in found.layers
    }
    embedder = context.study.glosses.embedder
    # an export has vectors of its own features alone, and what a server embeds is paid for
    if encoders and embedder != EXPORT and not embedder.startswith("openai:"):
        made = worded(context.model, encoders, corpus=corpus, embedder=embedder)
        tables.append(made.features)
        embeddings |= made.embeddings
    texts: dict[str, list[str | None]] = {}
    for table in tables:
        for label in pc.unique(table["sae"]).to_pylist():
            own = table.filter(pc.equal(table["sae"], label)).to_pydict()
            known = dict(zip(own["feature"], own["gloss"], strict=True))
            texts[label] = [known.get(k) for k in range(max(known, default=-1) + 1)]
    return Glosses(texts, {label: np.asarray(x) for label, x in embeddings.items()})
