"""A local web application over the tables of one study, and its export as a folder of static files.

Names resolve lazily: opening a study imports DuckDB and a web server, never torch; a model is loaded only
for `live`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.explore.book import Book
    from polysem.explore.export import export_static
    from polysem.explore.server import make_app, serve

__all__ = ["Book", "export_static", "make_app", "serve"]

_HOMES = {"Book": "book", "export_static": "export", "make_app": "server", "serve": "server"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
