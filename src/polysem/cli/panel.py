"""`polysem judge` and `polysem explain`: language models on the glosses of a finished study."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import result, verb
from polysem.errors import ConfigError

TEMPLATE = Path(__file__).with_name("judges.toml")

Run = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder with features and pairs.")]
PanelFile = Annotated[
    Path | None, typer.Argument(metavar="JUDGES.toml", help="The panel of models; --init prints one.")
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Say what would be sent and cost, and send nothing.")
]
Init = Annotated[bool, typer.Option("--init", help="Print a panel with its keys, and end.")]


@verb
def judge(
    run: Run = None, panel_file: PanelFile = None, estimate: Estimate = False, init: Init = False
) -> None:
    """Ask language models whether pairs are related, in both orders. Prints the path of the page."""
    if init:
        print(TEMPLATE.read_text(encoding="utf-8"), end="")
        return
    folder, file = _given(run, panel_file, "judge")
    from polysem.transfer.interpret import judge_run
    from polysem.transfer.panel import load_panel

    done = judge_run(folder, load_panel(file), say=_say, estimate_only=estimate)
    if not estimate:
        from polysem.report.interpret import write_judge_page

        done = write_judge_page(folder)
    result(done)


@verb
def explain(
    run: Run = None, panel_file: PanelFile = None, estimate: Estimate = False, init: Init = False
) -> None:
    """Let language models write glosses from contexts, and score them. Prints the path of the page."""
    if init:
        print(TEMPLATE.read_text(encoding="utf-8"), end="")
        return
    folder, file = _given(run, panel_file, "explain")
    from polysem.transfer.interpret import explain_run
    from polysem.transfer.panel import load_panel

    done = explain_run(folder, load_panel(file), say=_say, estimate_only=estimate)
    if not estimate:
        from polysem.report.interpret import write_explain_page

        done = write_explain_page(folder)
    result(done)


def _given(run: Path | None, panel_file: Path | None, name: str) -> tuple[Path, Path]:
    if run is None or panel_file is None:
        raise ConfigError(
            f"polysem {name} needs a run folder and a panel file", hint=f"polysem {name} --init > judges.toml"
        )
    return run, panel_file


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
