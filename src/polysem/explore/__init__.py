"""A local web application over the tables of one study, and its export as a folder of static files.

Names resolve lazily: opening a study imports DuckDB and a web server, never torch; a model is loaded only
for `live`.
"""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.explore.book import Book
    from polysem.explore.export import export_static
    from polysem.explore.server import make_app, serve

__all__ = ["Book", "export_static", "make_app", "serve"]

_HOMES = {"Book": "book", "export_static": "export", "make_app": "server", "serve": "server"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
