"""The command line: arguments in, one result on stdout, talk on stderr.

Exit codes: 0 done · 1 it failed, or `verify` found something · 2 the command line or the study file is wrong · 130 interrupted.
Environment variables are read here and nowhere below.
"""

__all__ = ["main"]


def main() -> None:
    """The entry point `polysem`."""
    import sys

    from polysem.cli.app import app, hoisted

    app(hoisted(sys.argv[1:]), prog_name="polysem")
