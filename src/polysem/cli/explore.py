"""`polysem explore RUN`: a local web application over a study, or its export as a folder."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from polysem.cli.shell import AsJson, result, say, verb, working


@verb
def explore(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder, finished or not.")],
    export: Annotated[
        Path | None, Option(metavar="DIR", help="Write static files into a new folder and end.")
    ] = None,
    live: Annotated[
        bool,
        Option("--live", help="Load the study's model when it is first steered, and let pages steer it."),
    ] = False,
    against: Annotated[
        Path | None, Option(metavar="RUN", help="Another run, beside this one under Results.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    allow_host: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[:PORT]",
            help="A name under which the explorer is visited, through a forwarded port or a proxy; without PORT at any.",
        ),
    ] = None,
    root_path: Annotated[
        str,
        Option(
            metavar="PATH",
            help="The path that a proxy puts in front, e.g. '/user/me/proxy/{port}' behind jupyter-server-proxy.",
        ),
    ] = "",
    browser: Annotated[bool, Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a study in a browser: map, pairs, steering, hubs, results; with --live, steer along features. Prints the address."""
    from polysem.explore.book import Book
    from polysem.explore.server import hosts_of, listen, new_token, root_of, serve
    from polysem.progress import on_stderr, waiting

    with waiting(on_stderr(), "opening"):
        book = Book(run, against=against)
    if export is not None:
        from polysem.explore.export import export_static

        with working("exporting"):
            made = export_static(book, export)
        result(made, as_json=as_json)
        return
    bench = None
    if live:
        from polysem.explore.live import Live

        bench = Live(book)
    names = allow_host or []
    hosts_of(host, port, more=names)
    with listen(host, port) as bound:
        port = bound.getsockname()[1]
        root, token = root_of(root_path, port), new_token()
        shown = host if host not in ("0.0.0.0", "::") else "localhost"
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}{root}/?token={token}"
        result(address, as_json=as_json, key="address")
        for name in names:
            say(f"through a forwarded port or a proxy: http(s)://{name}{root}/?token={token}")
        if browser:
            import webbrowser

            webbrowser.open(address)
        serve(book, bound, token=token, hosts=hosts_of(host, port, more=names), root=root, live=bench)
