"""The README's Python example, run as it stands."""

import contextlib
import io
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_readmes_example_runs_and_prints_estimates():
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})  # the example is ours, from this repository
    lines = printed.getvalue().splitlines()
    assert "trials" in lines[-1]
    assert len(lines) > 2, "no declared contrast was estimated"
