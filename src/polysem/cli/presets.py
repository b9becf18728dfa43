"""The paper's estimates beside the strict ones, said on stderr after `polysem run` with preset `paper` or `both`."""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_WIDTH = 110
_QUESTION = 38
"""columns of the question; the answers share the rest"""


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
