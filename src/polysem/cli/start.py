"""`polysem init`, `polysem zoo` and `--version`: where to begin."""

from pathlib import Path

import typer

from polysem.cli.shell import verb

TEMPLATE = Path(__file__).with_name("study.toml")


@verb
def init() -> None:
    """Print a study file with every key, its default and what it means; write it with `polysem init > study.toml`."""
    print(TEMPLATE.read_text(encoding="utf-8"), end="")


@verb
def zoo() -> None:
    """List the models, SAEs and texts that come with polysem-zoo, as they are written in a study."""
    from polysem.registry import zoo_names

    for kind in ("models", "saes", "texts"):
        for name in zoo_names(kind):
            print(f"{kind:<7} zoo:{name}")


def version(wanted: bool) -> None:
    """Print the version, if it is asked for, and end."""
    if wanted:
        from polysem import __version__

        print(__version__)
        raise typer.Exit()
