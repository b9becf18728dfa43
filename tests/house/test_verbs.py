"""What every verb of the command line has: help that is whole at 80 columns, and its result as JSON."""

import hashlib
import json

import click
import pytest
import typer
from typer.testing import CliRunner

from polysem.cli import shell
from polysem.cli.app import app
from polysem.progress import SILENT, Bars, waiting
from polysem.store import io

VERBS: dict[str, click.Command] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def said(*arguments: str) -> str:
    ended = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert ended.exit_code == 0, ended.output
    return ended.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_its_result_as_json_and_says_all_of_its_help(verb):
    options = {name: param for param in VERBS[verb].params for name in param.opts}
    assert "--json" in options
    help_text = said(verb, "--help")
    assert max(map(len, help_text.splitlines())) <= 80
    words = " ".join(help_text.split())
    for name, param in options.items():
        if isinstance(param, click.Option):
            assert name in words
            assert " ".join((param.help or "").split()).replace("- ", "-") in words.replace("- ", "-"), name


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["init"], {"model", "saes", "plan"}),
        (["judge", "--init"], {"judges", "pairs"}),
        (["explain", "--init"], {"judges", "features"}),
        (["transfer", "--init"], {"sources", "targets"}),
    ],
)
def test_what_files_to_begin_with_hold_is_json_too(arguments, keys):
    assert keys <= set(json.loads(said(*arguments, "--json")))


def test_completion_knows_the_verbs(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    found = CliRunner().invoke(
        app,
        prog_name="polysem",
        env={
            "_POLYSEM_COMPLETE": "complete_bash",
            "COMP_WORDS": "polysem re",
            "COMP_CWORD": "1",
        },
    )
    assert set(found.stdout.split()) == {name for name in VERBS if name.startswith("re")}


class Seen(Bars):
    """A terminal, remembered."""

    def __init__(self):
        super().__init__()
        self.stages = []

    def stage(self, label):
        self.stages.append(label)
        return super().stage(label)


def test_a_terminal_sees_work_that_tells_no_progress_and_a_pipe_nothing(monkeypatch):
    terminal = Seen()
    monkeypatch.setattr("polysem.progress.on_stderr", lambda: terminal)
    with shell.working("looking"):
        pass
    assert terminal.stages == ["looking"]
    monkeypatch.setattr("polysem.progress.on_stderr", lambda: SILENT)
    with shell.working("looking again"):
        pass
    assert terminal.stages == ["looking"]


def test_a_terminal_sees_how_far_a_large_file_is_and_a_small_one_is_nobodys_business(monkeypatch, tmp_path):
    told = []

    class Watched(Bars):
        def track(self, items, *, total, label, done=0):
            told.append((label, total))
            return super().track(items, total=total, label=label, done=done)

    monkeypatch.setattr("polysem.store.io.PIECE", 4)
    file = tmp_path / "model.gguf"
    for size, said in ((4 * io.SHOWN, []), (4 * io.SHOWN + 1, [("reading model.gguf", io.SHOWN + 1)])):
        file.write_bytes(bytes(size))
        with waiting(Watched(), "looking"):
            assert io.sha256(file) == hashlib.sha256(bytes(size)).hexdigest()
        assert told == said
    io.sha256(file)  # nobody looks
    assert len(told) == 1
