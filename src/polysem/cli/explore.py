"""`polysem explore RUN`: a local web application over a study, or its export as a folder."""

from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import result, verb


@verb
def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write static files into a new folder and end."),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Load the study's model when it is first pushed, and let pages push it."),
    ] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A name under which this machine is visited."),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Look at a study in a browser: map, pairs, pushes, hubs, results; with --live, push features. Prints the address."""
    from polysem.explore.book import Book
    from polysem.explore.server import hosts_of, listen, new_token, serve

    book = Book(run)
    if export is not None:
        from polysem.explore.export import export_static

        result(export_static(book, export))
        return
    bench = None
    if live:
        from polysem.explore.live import Live

        bench = Live(book)
    bound = listen(host, port)
    port = bound.getsockname()[1]
    token = new_token()
    shown = host if host not in ("0.0.0.0", "::") else (allow_host or ["localhost"])[0]
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/?token={token}"
    print(address, flush=True)
    if browser:
        import webbrowser

        webbrowser.open(address)
    serve(book, bound, token=token, hosts=hosts_of(host, port, more=allow_host or []), live=bench)
