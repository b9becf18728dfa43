"""`polysem selftest`: the instrument pointed at worlds where the answer is known.

`run(full=False)` runs every check and gives a `Verdict`: one line per number, with what was expected, the
Monte-Carlo error of what was measured, and whether it held. `latest()` is the verdict of the last full run,
which comes with the library and goes into every report.
"""

from polysem.selftest.lines import Line, Verdict
from polysem.selftest.record import latest, to_json, to_markdown
from polysem.selftest.runner import CHECKS, Check, run

__all__ = ["CHECKS", "Check", "Line", "Verdict", "latest", "run", "to_json", "to_markdown"]
