"""The web server: the page, the documents, rows, and `live` where a model may be loaded."""

import asyncio
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from polysem.boundary.door import Door
from polysem.boundary.text import parse_json
from polysem.errors import ConfigError, PolysemError, StoreError
from polysem.explore import documents, figures
from polysem.explore.book import Book
from polysem.explore.guard import POLICY, App, Guard, host_of
from polysem.explore.output import MEDIA, rows_as
from polysem.explore.query import Query
from polysem.report import html

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MODE, _POLICY = "@MODE@", "@POLICY@"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_LONGEST = 1 << 16
"""bytes of a live request"""
_REQUEST = Door("request", "send one JSON object", ConfigError, ConfigError)
HEADERS_WITHIN = 20.0
"""seconds in which the headers of a request must come, and then its body"""


def make_app(book: Book, *, token: str, hosts: Sequence[str], root: str = "", live: Any = None) -> App:
    """The application behind its guard.

    Args:
        book: the study.
        token: what a visitor must bring.
        hosts: names that are answered, with a port or for any.
        root: the path that a proxy puts in front, as `root_of` gives it.
        live: `explore.live.Live`, or None where nothing may be run.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        if live is not None:
            live.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.exception_handler(PolysemError)
    async def refused(_: Request, error: PolysemError) -> JSONResponse:
        status = 400 if isinstance(error, ConfigError) else 404 if isinstance(error, StoreError) else 409
        return JSONResponse({"error": error.args[0], "hint": error.hint}, status_code=status)

    @app.get("/")
    def index() -> Response:
        return Response(page("live" if live is not None else "server"), media_type="text/html")

    @app.get("/static/{name:path}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            return Response("no such file", status_code=404, media_type="text/plain")
        content, kind = ASSETS[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    _add_data(app, book)
    if live is not None:
        _add_live(app, live)
    return Guard(app, token=token, hosts=frozenset(hosts), root=root)


def page(mode: str) -> str:
    """The one HTML page; `mode` is live, server or static. Files have no headers, so there the policy is in
    the page."""
    policy = POLICY.replace("frame-ancestors 'none'; ", "")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n' if mode == "static" else ""
    return ASSETS["index.html"][0].decode().replace(_MODE, mode).replace(_POLICY, meta)


def _assets() -> dict[str, tuple[bytes, str]]:
    """Every file of the page, by its name below static/: known beforehand, so no path is ever made of a request. What
    draws and colours figures is the report's."""
    root = files("polysem.explore").joinpath("static")
    found: dict[str, tuple[bytes, str]] = {}
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        for item in folder.iterdir():
            name, suffix = f"{prefix}{item.name}", Path(item.name).suffix
            if item.is_dir():
                folders.append((f"{name}/", item))
            elif suffix in _TYPES:
                found[name] = (item.read_bytes(), _TYPES[suffix])
    for name in html.SHARED:
        found[name] = (html.shared(name).encode(), _TYPES[Path(name).suffix])
    return dict(sorted(found.items()))


ASSETS = _assets()


def _add_data(app: Any, book: Book) -> None:
    from fastapi import Query as Parameter
    from fastapi.responses import Response, StreamingResponse

    made = documents.DOCUMENTS

    @app.get("/data/progress.json")
    def progress() -> Response:
        return _json(documents.progress(book))

    @app.get("/data/{name}.json")
    def document(name: str) -> Response:
        if name not in made:
            raise StoreError(f"there is no document {name!r}; there are {', '.join(made)} and progress")
        book.look()
        return _json(book.once(f"document {name}", lambda: made[name](book)))

    @app.get("/data/figures/pair")
    def pair_figures(sae: str, i: int, j: int) -> Response:
        book.look()
        return _answer(figures.of_pair(book, sae, i, j))

    @app.get("/data/figures/feature")
    def feature_figures(sae: str, feature: int) -> Response:
        book.look()
        return _answer(figures.of_features(book, sae, [feature]))

    @app.get("/data/figures/{name}.html")
    def section(name: str) -> Response:
        book.look()
        return _answer(figures.section(book, name))

    @app.get("/data/feature")
    def feature(sae: str, feature: int) -> Response:
        book.look()
        return _json(documents.feature(book, sae, feature))

    @app.get("/data/rows/{name}")
    def rows(
        name: str,
        f: Annotated[list[str] | None, Parameter()] = None,
        q: str = "",
        near: str = "",
        among: str = "",
        sort: str = "",
        limit: int = 50,
        offset: int = 0,
        format: str = "json",
    ) -> Response:
        book.look()
        query = Query.parse(
            book.relation(name),
            filters=f or (),
            search=q,
            near=near,
            among=among,
            sort=sort,
            limit=limit,
            offset=offset,
        )
        match format:
            case "json":
                found, total = book.page(query)
                return _json({"total": total, "offset": offset, "rows": found})
            case "csv" | "parquet" | "jsonl":
                headers = {
                    "content-disposition": f'attachment; filename="{query.relation.name}.{format}"',
                    "cache-control": "no-store",
                }
                return StreamingResponse(
                    rows_as(book, query, format), media_type=MEDIA[format], headers=headers
                )
            case _:
                raise ConfigError(f"format={format[:40]!r}: expected json, jsonl, csv or parquet")


def _add_live(app: Any, live: Any) -> None:
    from fastapi import Request
    from fastapi.responses import Response, StreamingResponse

    @app.get("/live")
    def choices() -> Response:
        return _json(live.choices())

    @app.post("/live")
    async def start(request: Request) -> Response:
        body = b""
        try:
            async with asyncio.timeout(HEADERS_WITHIN):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > _LONGEST:
                        raise ConfigError(f"the request is longer than {_LONGEST} bytes")
        except TimeoutError:
            raise ConfigError(f"the request did not come whole within {HEADERS_WITHIN:g} s") from None
        return _json(live.start(parse_json(body, "the request", door=_REQUEST)))

    @app.get("/live/{job}")
    def look(job: str) -> Response:
        return _json(live.look(job))

    @app.get("/live/{job}/changes")
    def follow(job: str) -> Response:
        lines = (f"{documents.as_json(told)}\n" for told in live.follow(job))
        headers = {"cache-control": "no-store"}
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=headers)

    @app.delete("/live/{job}")
    def cancel(job: str) -> Response:
        return _json(live.cancel(job))


def _json(value: Any) -> Any:
    return _answer(documents.as_json(value), "application/json")


def _answer(text: str, kind: str = "text/html") -> Any:
    from fastapi.responses import Response

    return Response(text, media_type=kind, headers={"cache-control": "no-store"})


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: if the address cannot be used.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)  # whoever reads the address may call at once
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror or error}", hint="choose another --port"
        ) from error
    return bound


def hosts_of(host: str, port: int, *, more: Sequence[str] = ()) -> list[str]:
    """Names to answer to for a bound address: loopback names if it is loopback, and itself, with their port; and what is
    given, NAME:PORT, or NAME for any port.

    Raises:
        ConfigError: something given is no host.
    """
    for given in more:
        if host_of(given) is None:
            raise ConfigError(
                f"--allow-host {given!r} is no host; expected NAME or NAME:PORT, without http:// and path",
                hint="polysem explore RUN --allow-host localhost:9999",
            )
    named = f"[{host}]" if ":" in host else host
    local = host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")
    names = {*LOOPBACK} if local else {named}
    return [*(f"{name}:{port}" for name in sorted({*names, named})), *more]


def root_of(path: str, port: int) -> str:
    """The path that a proxy puts in front, with a slash before it and none behind; `{port}` in it is the port.

    Raises:
        ConfigError: a path that cannot stand in an address.
    """
    root = f"/{path.replace('{port}', str(port)).strip('/')}" if path.strip("/") else ""
    if not re.fullmatch(r"(/[\w.~@%+:=-]+)*", root) or ".." in root.split("/"):
        raise ConfigError(
            f"--root-path {path!r} is no path; expected one like /user/me/proxy/8000",
            hint="polysem explore RUN --root-path '/user/me/proxy/{port}'",
        )
    return root


def impatient() -> type:
    """uvicorn's protocol, with an end to requests whose headers do not come: a connection is closed that has not brought
    them whole in HEADERS_WITHIN seconds, the first ones or later ones."""
    from uvicorn.protocols.http.h11_impl import H11Protocol, h11  # pyright: ignore[reportPrivateImportUsage]

    class Impatient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                if self._late is not None:
                    self._late.cancel()
                self._late = None
            elif self._late is None:
                self._late = self.loop.call_later(HEADERS_WITHIN, self.transport.close)

    return Impatient


def serve(
    book: Book, bound: socket.socket, *, token: str, hosts: Sequence[str], root: str = "", live: Any = None
) -> None:
    """Answer at a bound socket until interrupted."""
    import uvicorn

    app = make_app(book, token=token, hosts=hosts, root=root, live=live)
    config = uvicorn.Config(
        app,
        http=impatient(),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,  # whoever follows a push does not keep the command from ending
    )
    uvicorn.Server(config).run(sockets=[bound])


def new_token() -> str:
    """256 random bits, as they go into an address."""
    return secrets.token_urlsafe(32)
