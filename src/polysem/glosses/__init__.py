"""Glosses: read, made from tokens, embedded, clustered. Names resolve lazily; importing this "
"imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.glosses.base import Gloss
    from polysem.glosses.clusters import gloss_clusters
    from polysem.glosses.dashboards import read_neuronpedia_features
    from polysem.glosses.embed import Embedded, embed_glosses, embed_texts
    from polysem.glosses.read import read_glosses
    from polysem.glosses.tokens import token_glosses

__all__ = [
    "Embedded",
    "Gloss",
    "embed_glosses",
    "embed_texts",
    "gloss_clusters",
    "read_glosses",
    "read_neuronpedia_features",
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
    "token_glosses": "tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
