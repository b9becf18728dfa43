"""The notebooks run as they stand, and what they keep is what they show: every code cell in order, in one namespace."""

import importlib.util
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180
"""of CPU, for one notebook"""


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("notebooks", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pandas and transformers, for who writes the notebook
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_three_minutes_and_shows_what_it_keeps(path, runner):
    kept = json.loads(path.read_text(encoding="utf-8"))
    again = json.loads(path.read_text(encoding="utf-8"))
    started = time.process_time()
    runner.execute(again)
    assert time.process_time() - started < SECONDS
    for old, new in zip(code(kept), code(again), strict=True):
        assert [o["output_type"] for o in old["outputs"]] == [o["output_type"] for o in new["outputs"]], old[
            "source"
        ]
        assert [sorted(o.get("data", {})) for o in old["outputs"]] == [
            sorted(o.get("data", {})) for o in new["outputs"]
        ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_one_and_is_small(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(cell["execution_count"] == n for n, cell in enumerate(code(notebook), 1))
    assert code(notebook)[0]["source"][0].startswith("%pip install")
    assert path.stat().st_size < 600_000
    assert "Traceback" not in path.read_text(encoding="utf-8")
