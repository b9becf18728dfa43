"""Glosses: read, made from tokens, embedded, clustered. Names resolve lazily; importing this
imports no torch."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.glosses.base import Gloss
    from polysem.glosses.clusters import gloss_clusters
    from polysem.glosses.dashboards import read_neuronpedia_features
    from polysem.glosses.embed import Embedded, embed_glosses, embed_texts
    from polysem.glosses.read import read_glosses
    from polysem.glosses.shipped import shipped_glosses
    from polysem.glosses.tokens import token_glosses

__all__ = [
    "Embedded",
    "Gloss",
    "embed_glosses",
    "embed_texts",
    "gloss_clusters",
    "read_glosses",
    "read_neuronpedia_features",
    "shipped_glosses",
    "token_glosses",
]

_HOMES = {
    "Embedded": "embed",
    "Gloss": "base",
    "embed_glosses": "embed",
    "embed_texts": "embed",
    "gloss_clusters": "clusters",
    "read_glosses": "read",
    "read_neuronpedia_features": "dashboards",
    "shipped_glosses": "shipped",
    "token_glosses": "tokens",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
