"""`polysem layers`: the weights from every dictionary of a study to those of later layers, one part for each that writes.

    layers/NN-{layer_blocks,layer_density,layer_edges,layer_tokens,layer_findings}.parquet

NN is the place of the dictionary among the sorted labels. A run that is killed costs the dictionary it was at.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.engine.context import StudyContext
from polysem.engine.task import Made, StageOptions, Tables, Task
from polysem.errors import ConfigError
from polysem.progress import Reporter
from polysem.store.run import Part
from polysem.store.stages import REGISTRY

LONGEST = 64
"""tokens of a row at most: events are run again row by row"""
_AT_LEAST = {"sources": 2, "prompts": 3, "events": 1, "edges": 3, "steered": 0, "tokens": 0}


@dataclass(frozen=True)
class LayersOptions(StageOptions):
    """How much is measured of every two dictionaries."""

    sources: int = 100
    """features that are pushed, and taken away"""
    prompts: int = 24
    """rows of text on which they are pushed"""
    events: int = 12
    """positions of each at which they are taken away"""
    edges: int = 60
    """edges whose help is measured"""
    steered: int = 40
    """sources that are steered at doses; 0: none"""
    tokens: int = 0
    """of the corpus; 0: as the study says"""

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}; expected at least {least}")


def make(task: Task) -> Made | None:
    """The tables, one part per dictionary that writes."""
    context = task.context
    _check(context)

    def one(part: Part, reporter: Reporter) -> Tables:
        return compute(context, sorted(context.saes)[part.k], task.options)

    return task.in_parts(one)


def compute(context: StudyContext, label: str, options: LayersOptions) -> dict[str, pa.Table]:
    """The tables of one source."""
    from polysem.corpus import token_rows
    from polysem.layers.ends import Ends
    from polysem.layers.run import LayersPlan, across
    from polysem.positions import positions_of

    study, saes, model = context.study, context.saes, context.model
    corpus = study.corpus
    rows = token_rows(
        corpus.ref, model, n_tokens=options.tokens or corpus.n_tokens, context=min(corpus.context, LONGEST),
        positions=positions_of(model, saes[label]),
    )  # fmt: skip
    plan = LayersPlan(
        n_sources=options.sources, n_prompts=options.prompts, n_events=options.events, n_edges=options.edges,
        n_steered=options.steered,
    )  # fmt: skip
    found = across(
        model, Ends.of(label, saes[label]), [Ends.of(other, saes[other]) for other in saes if other != label], rows,
        plan=plan, glosses=_glosses(context), seed=study.seed,
    )  # fmt: skip
    return {schema.name: schema.of_rows(found[schema.name]) for schema in REGISTRY["layers"].tables}


def _check(context: StudyContext) -> None:
    """Raises ConfigError where no dictionary is read by a later one."""
    from polysem.layers.ends import Ends, linked

    ends = [Ends.of(label, sae) for label, sae in context.saes.items()]
    if not any(linked(a, b) for a in ends for b in ends):
        sites = ", ".join(f"{one.label} ({one.first} -> {one.reads})" for one in ends)
        raise ConfigError(
            f"no dictionary of the study is read by one of a later layer: {sites}",
            hint="add a dictionary of the residual stream of a later layer to [[saes]]",
        )


def _glosses(context: StudyContext) -> Any:
    from polysem.layers.run import Glosses

    table = context.features.features
    texts: dict[str, list[str | None]] = {}
    for label in context.saes:
        own = table.filter(pc.equal(table["sae"], label)).to_pydict()
        known = dict(zip(own["feature"], own["gloss"], strict=True))
        texts[label] = [known.get(k) for k in range(max(known, default=-1) + 1)]
    embeddings = {label: np.asarray(x) for label, x in context.features.embeddings.items()}
    return Glosses(texts, embeddings)
