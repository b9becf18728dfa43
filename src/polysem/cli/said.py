"""What is said on stderr of a finished stage: after `polysem plan` what the plan can see; after `polysem run` its findings in
four lines, and with preset `paper` or `both` the paper's estimates beside the strict ones. And two runs side by side."""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polysem.cli.shell import say

_WIDTH = 110
_QUESTION = 38
"""columns of the question; the answers share the rest"""


def say_power(folder: Path) -> None:
    """The smallest slope on interference that the plan would see, for effects as spread out as the zoo's.

    Nothing is known about the study's own effects yet: the numbers are in units of the standard deviation of
    effects from pair to pair (`stats.power.PILOT`), and the ratios of the other spreads to it are those measured
    on the zoo.
    """
    from polysem.stats.power import PILOT, planned_power
    from polysem.store.run import RunFolder

    run = RunFolder.open(folder)
    level = run.study().effects.level
    for tokens, (power, far) in planned_power(run.table("plan"), spread=PILOT, level=level).items():
        print(
            f"power, T-{tokens}: would see, in 4 of 5 such studies, a difference between interference {far:.2g} and 0 "
            f"of {far * power.smallest:.2g} standard deviations of effects from pair to pair (t with {power.df:.0f} df)",
            file=sys.stderr,
        )


def say_findings(folder: Path) -> None:
    """One line for each declared question, the first token set of it, and what to do next; nothing where effects are absent."""
    from polysem.report.compare import findings
    from polysem.report.source import Run

    told = {f["contrast"]: f for f in reversed(findings(Run.open(folder)))}
    for one in reversed(told.values()):
        say(f"  {one['question']} {one['claim']}: {_numbers(one)}")
    say(f"  next: polysem explore {folder} --live")


def _numbers(told: Mapping[str, Any]) -> str:
    from polysem.report.html import interval

    return interval(told) if told["estimate"] is None else f"{interval(told)} {told['unit']}"


def side_by_side(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `report.compare.compare`."""
    yield from (f"{name}  {folder}" for name, folder in zip("AB", found["runs"], strict=True))
    for head, rows in (("settings that differ", found["settings"]), ("size", found["sizes"])):
        yield f"\n{head}"
        yield from (line for key, two in rows.items() for line in columns(f"  {key}", *two))
        if not rows:
            yield "  none"
    yield "\nfindings"
    for one in found["findings"]:
        cells = [
            f"{one[k]['claim']}: {_numbers(one[k] | {'unit': one['unit']})}" if one[k] else "not asked"
            for k in "ab"
        ]
        apart = "" if one["intervals_overlap"] in (True, None) else " (the intervals do not overlap)"
        yield from _row(f"  {one['question']}{apart}", *cells)
    pairs = found["pairs"]
    yield f"\npairs listed in both: {pairs['listed_in_both']:,} of {pairs['listed'][0]:,} and {pairs['listed'][1]:,}"
    known = "" if pairs["rank_correlation"] is None else (
        f"; rank correlation {pairs['rank_correlation']:.2f}, same sign in {100 * pairs['same_sign']:.0f} %"
    )  # fmt: skip
    yield f"effects measured in both: {pairs['effects_in_both']:,} of {pairs['effects'][0]:,} and {pairs['effects'][1]:,}{known}"


def columns(name: str, *values: object) -> Iterator[str]:
    """The lines of one row: a name, and a value of each that is compared."""
    return _row(name, *map(_plain, values))


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def say_presets(folder: Path) -> None:
    """The side-by-side table of a finished run; nothing where its study asks for strict estimates only."""
    from polysem.report.presets import presets_section
    from polysem.report.source import Run

    section = presets_section(Run.open(folder))
    if section is not None:
        print("\n".join(lines_of(section)), file=sys.stderr)


def lines_of(section: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `report.presets.presets_section`, as a table of plain text."""
    both = bool(section["both"])
    for part in section["parts"]:
        yield ""
        yield from _row(part["name"], "the paper's way", *(("the strict way",) if both else ()))
        yield "-" * _WIDTH
        for question in part["questions"]:
            answers = [_cell(question["paper"], question["paper_n"])]
            answers += [_cell(question["strict"], question["strict_n"])] if both else []
            yield from _row(question["asked"], *answers)
            if both and question["why"]:
                yield from _wrapped("why they differ: " + "; ".join(question["why"]), indent=2)
        for note in (*part["notes"], part["null"]):
            yield from _wrapped(note)
        yield from (line for row in part["optimism"] for line in _wrapped(_selection(part, row)))


def _selection(part: Mapping[str, Any], row: Mapping[str, str]) -> str:
    """What choosing the strength adds for one relation."""
    return (
        f"choosing among {part['tried']} strengths, {row['relation']}: {row['best_per_prompt']} at the best of each "
        f"reported prompt (KL there {row['kl']}), {row['same_on_confirm']} where chosen on other prompts; added by "
        f"choosing {row['gap']} {row['gap_interval']}"
    )


def _wrapped(text: str, *, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _cell(cell: Mapping[str, str], rest: str) -> str:
    return "\n".join(
        t for t in (f"{cell['estimate']}{cell['mark']} {cell['interval']}", f"{cell['p']}{rest}") if t
    )


def _row(question: str, *answers: str) -> Iterator[str]:
    """One row: each cell wrapped to its column."""
    width = (_WIDTH - _QUESTION) // max(1, len(answers)) - 2
    widths = (_QUESTION - 2, *(width for _ in answers))
    cells = [
        [line for text in cell.split("\n") for line in textwrap.wrap(text, w) or [""]]
        for cell, w in zip((question, *answers), widths, strict=True)
    ]
    for k in range(max(map(len, cells))):
        shown = [(cell[k] if k < len(cell) else "").ljust(w) for cell, w in zip(cells, widths, strict=True)]
        yield "  ".join(shown).rstrip()
