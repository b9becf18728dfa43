"""`polysem selftest` in its quick form: every line that is judged holds."""

import json
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.cli.selftest import _write
from polysem.errors import ConfigError, StoreError
from polysem.report.selftest import section_of
from polysem.saes import base as codec
from polysem.selftest import Line, Verdict, run, runner, to_json, to_markdown
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near, rate, reported
from polysem.selftest.record import curve_points, from_json, latest
from polysem.selftest.runner import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: f"{c.world} {c.name}")
def test_quick_checks_hold(check):
    verdict = run(checks=[check])
    if check.full_only:
        assert not verdict.lines
        return
    assert verdict.lines
    broken = [f"{x.name}: {x.value:.4g}, expected {x.expected} ({x.note})" for x in verdict.broken]
    assert not broken


def line(measured: Measured) -> Line:
    return Line("GT0", *measured, seconds=0.0)


@pytest.mark.parametrize(
    ("measured", "held"),
    [
        (near("x", 1.0, 1.1, 0.2), True),
        (near("x", 1.0, 1.3, 0.2), False),
        (near("x", float("nan"), 1.3, 0.2), False),
        (reported("x", 3.0), None),
        (reported("x", float("nan")), False),
        (exactly("x", 3, 3), True),
        (exactly("x", 3, 4), False),
        (at_most("x", 3, 3), True),
        (at_least("x", 2.9, 3), False),
        (rate("x", 5, 100, nominal=0.05), True),
        (rate("x", 30, 100, nominal=0.05), False),
        (rate("x", 0, 10, nominal=0.05), True),
    ],
)
def test_a_line_holds_inside_its_limits_only(measured, held):
    assert line(measured).held is held


def test_a_verdict_holds_if_all_its_lines_do():
    good, bad = line(exactly("x", 1, 1)), line(exactly("y", 1, 2))
    assert Verdict((good,), "quick", 0).held
    assert not Verdict((good, bad), "quick", 0).held
    assert Verdict((good, bad), "quick", 0).broken == [bad]
    assert not Verdict((), "quick", 0).held  # nothing was measured


def test_an_error_in_a_check_is_a_broken_line_and_the_others_go_on(monkeypatch):
    from polysem.selftest import identities

    def refuses(size):
        raise ConfigError("no such thing")
        yield

    monkeypatch.setattr(identities, "edits", refuses)
    checks = [Check("GT0", "edits", "identities:edits"), Check("GT0", "sae", "identities:sae_on_disk")]
    verdict = run(checks=checks)
    assert [x.held for x in verdict.lines][:2] == [False, True]
    assert "no such thing" in verdict.lines[0].note


def test_json_and_back():
    lines = (line(near("x|y", 1.0, 1.1, 0.2, error=0.05)), line(exactly("z", float("nan"), 2)))
    verdict = Verdict(lines, "full", 3, {"numpy": "2"})
    again = from_json(to_json(verdict), origin="here")
    assert again.lines[0] == verdict.lines[0]
    assert (again.held, again.scale, again.seed, again.versions) == (False, "full", 3, {"numpy": "2"})
    table = to_markdown(verdict)
    assert "x\\|y" in table
    assert "**NO**" in table
    assert "not a number" in table


def test_the_curve_of_learnt_dictionaries_is_drawn_beside_the_table(tmp_path):
    values = {"topk 4": (0.9, 0.2), "topk 8": (0.7, 0.1), "gated 0.1": (0.95, float("nan"))}
    lines = tuple(
        Line("GT5", *reported(f"learnt: {name}, {sae}", value), seconds=0.0)
        for sae, pair in values.items()
        for name, value in zip(("MCC", "pair precision"), pair, strict=True)
    )
    verdict = Verdict(lines, "full", 0)
    assert curve_points(verdict) == [(0.9, 0.2, "topk 4"), (0.7, 0.1, "topk 8")]
    _write(tmp_path, to_json(verdict), verdict)
    root = ET.fromstring((tmp_path / "img" / "worlds" / "precision.svg").read_text())
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 2
    assert "(img/worlds/precision.svg)" in (tmp_path / "validation.md").read_text()


def test_the_verdict_that_comes_with_the_library_is_a_full_run_that_held():
    """Every report shows it; it has every check there is."""
    verdict = latest()
    assert verdict is not None
    assert (verdict.scale, verdict.held) == ("full", True)
    seen = {(line.world, line.name.partition(":")[0]) for line in verdict.lines}
    assert seen == {(check.world, check.name) for check in CHECKS}
    shown = section_of(verdict)
    assert sum(len(world.rows) for world in shown.worlds) == len(verdict.lines)
    assert not shown.broken


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99, "lines": []}', '{"format": 1, "lines": [{}]}'])
def test_what_is_no_verdict_is_refused(text):
    with pytest.raises(StoreError, match="here"):
        from_json(text, origin="here")


def test_an_unknown_world_is_an_error():
    with pytest.raises(ConfigError, match="GT9"):
        run(worlds=["GT9"])


ONE = (Check("GT0", "sae", "identities:sae_on_disk"),)


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CHECKS", ONE)
    done = CliRunner().invoke(app, ["selftest", "--json", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["held"] is True
    assert (tmp_path / "validation.md").read_text().startswith("# Validation")
    assert json.loads((tmp_path / "selftest.json").read_text())["scale"] == "quick"


def test_command_line_fails_where_a_line_does(monkeypatch):
    monkeypatch.setattr(runner, "CHECKS", ONE)
    monkeypatch.setattr(codec, "_normalize", lambda sae, x: x)
    done = CliRunner().invoke(app, ["selftest"])
    assert done.exit_code == 1
    assert "FAIL GT0 sae: FVU with layer-norm inputs" in done.stdout


def test_command_line_of_an_unknown_world():
    done = CliRunner().invoke(app, ["selftest", "--world", "GT9"])
    assert done.exit_code == 2
    assert "GT9" in done.stderr
