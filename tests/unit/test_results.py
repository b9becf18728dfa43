"""What results do in a session: words, data frames, figures, files; runs opened; progress where somebody waits."""

import io as std
import logging
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest

import polysem
from polysem import api, progress
from polysem.config import PairsConfig, Study
from polysem.errors import ConfigError, MismatchError, StoreError
from polysem.features import FeatureTable
from polysem.side_effects.run import SideEffects
from polysem.stats import estimate
from polysem.store.manifest import Manifest, StageInputs
from polysem.store.run import RunFolder
from polysem.store.tables import EFFECTS
from support.results import check_result
from support.synthetic import SyntheticStudy, synthetic_run, synthetic_tables

WORLD = SyntheticStudy(
    n_features=60, n_targets=4, n_prompts=8, doses=(0.1, 0.2), saes=("blocks.2.hook_resid_post",)
)


@pytest.fixture(scope="module")
def results():
    """One of every kind, from the synthetic study."""
    made = synthetic_tables(WORLD)
    features = FeatureTable(**made["features"], embeddings={})
    pairs = api.SAEPairs(**made["pairs"], label=WORLD.saes[0], config=PairsConfig())
    study = Study.model_validate({"model": {"ref": "m"}, "saes": [{"ref": "s", "label": WORLD.saes[0]}]})
    planned = api.PlannedStudy(made["plan"]["plan"], made["plan"]["prompts"], study, features, {})
    trials = api.TrialSet(made["trials"]["trials"], planned)
    found = estimate(planned.plan, trials.trials, config=study.effects, seed=0)
    return [features, pairs, planned, trials, api.Estimates(**found.tables(), planned=planned)]


def test_every_result_can_do_all_that_a_result_does(results, tmp_path):
    for n, result in enumerate(results):
        check_result(result, tmp_path / str(n))
    assert "pairs " in repr(results[1])
    assert "slope_interference T-in" in repr(results[-1])
    with pytest.raises(ConfigError, match="no table 'x'; expected one of pairs, density"):
        results[1].to_pandas("x")


def test_polars_where_it_is_there(results):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = results[-1].to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.shape == (results[-1].effects.num_rows, results[-1].effects.num_columns)


def test_without_polars_the_way_round_is_said(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ConfigError, match="to_pandas"):
        results[0].to_polars()


def test_saved_tables_are_those_of_a_run(results, tmp_path):
    estimates = results[-1]
    folder = estimates.save(tmp_path / "all")
    assert {p.stem for p in folder.iterdir()} == set(estimates.tables())
    assert pq.read_table(folder / "effects.parquet").equals(EFFECTS.conform(estimates.effects))
    assert estimates.save(tmp_path / "one.csv").read_text().startswith("contrast,")
    assert pq.read_table(estimates.save(tmp_path / "one.parquet")).num_rows == estimates.effects.num_rows
    with pytest.raises(ConfigError, match="expected a folder"):
        estimates.save(tmp_path / "one.xlsx")


@pytest.mark.parametrize("choices", [{}, {"tokens": "out"}, {"kind": "relations"}, {"kind": "dose"}])
def test_estimates_are_drawn_as_in_the_report(choices, results, tmp_path):
    drawn = results[-1].plot(**choices)
    whole = ET.fromstring(drawn.save(tmp_path / "x.svg").read_text(encoding="utf-8"))
    assert whole.attrib["aria-label"].startswith(drawn.title)
    assert list(whole)


def test_a_pair_is_drawn_over_the_noise_floor(results):
    steered = next(r for r in results[-1].pair_effects.to_pylist() if r["relation"] == "pair")
    drawn = results[-1].plot(pair=(steered["source"], steered["target"]))
    assert f"{steered['source']} steered, {steered['target']} read" in drawn.caption
    assert 'class="floor"' in drawn.svg
    with pytest.raises(ConfigError, match=r"pair \(0, 0\) was not steered; among those that were: \("):
        results[-1].plot(pair=(0, 0))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"kind": "pie"}, "expected one of"),
        ({"tokens": "up"}, "on tokens 'up'"),
        ({"locus": "x"}, "at locus x"),
    ],
)
def test_choices_that_do_not_exist_are_refused(choice, said, results):
    with pytest.raises(ConfigError, match=said):
        results[-1].plot(**choice)


# runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return polysem.open_run(str(synthetic_run(tmp_path_factory.mktemp("run") / "a", WORLD)))


def test_a_run_gives_its_tables_as_attributes(run):
    assert run.effects.equals(run.table("effects"))
    assert {"pairs", "effects", "trials"} <= set(dir(run))
    assert "study synthetic" in repr(run)
    assert list(run.to_pandas().columns) == run.effects.column_names
    assert run.to_pandas("pairs").shape == run.pairs.shape
    with pytest.raises(AttributeError, match="no 'pears'; its tables are effects"):
        _ = run.pears
    assert run.plot().title == run.plot(kind="interference").title
    assert "data:image" in run._repr_html_()


def test_an_unfinished_run_has_what_there_is(tmp_path):
    run = polysem.open_run(synthetic_run(tmp_path / "a", WORLD, stages=("features", "pairs")))
    assert "effects" not in dir(run)
    assert "<table" in run._repr_html_()
    with pytest.raises(ConfigError, match="no effects"):
        run.plot()
    bare = polysem.open_run(synthetic_run(tmp_path / "b", WORLD, stages=()))
    assert "nothing yet" in bare._repr_html_()
    with pytest.raises(StoreError, match="no run folder"):
        polysem.open_run(tmp_path / "none")


def test_a_run_can_do_all_that_a_result_does(run, tmp_path):
    check_result(run, tmp_path)


def test_what_was_made_beside_a_study_is_among_its_tables(tmp_path):
    folder = synthetic_run(tmp_path / "a", WORLD, stages=("features",))
    found = side_effects()
    outputs = RunFolder(folder).write("side-effects", dict(found.held))
    made_from = StageInputs("side-effects", {}, {}, {}, {}, {})
    Manifest(made_from, outputs, facts={}).write(folder / "side-effects" / "manifest.json")
    run = polysem.open_run(folder)
    assert run.side_effects.equals(found.held["side_effects"])
    assert "side_effects_moved" in dir(run)
    assert "joint_pairs" not in dir(run)


_MOVED = {"kind": "category", "selected": 0.2, "value": 0.3, "beyond": True}


def side_effects():
    """What two directions moved, as rows."""
    of = {"lo": 0.1, "hi": 0.9, "forecast": 0.4, "n_prompts": 8}
    about = {"kind": "texts", "site": "s", "tokens": ["a"], "tokens_from": "asked", "positions": "all"}
    about |= {"dose_unit": "kl", "dose": 0.1, "length": 1.0, "n_prompts": 8, "n_reached": 8, "n_null": 20}
    names = ("happy", "calm")
    return SideEffects.of(
        {
            "directions": [about | {"direction": name} for name in names],
            "side_effects": [
                of | {"direction": n, "measure": "on_target", "value": 0.5, "n_null": 20} for n in names
            ],
            "side_effects_moved": [
                of | {"direction": n, "name": word, "rank": k, "place": k} | _MOVED
                for n in names
                for k, word in enumerate(("person", "time"))
            ],
        }
    )


def test_side_effects_can_do_all_that_a_result_does(tmp_path):
    found = side_effects()
    check_result(found, tmp_path)
    assert repr(found) == "SideEffects(calm 0.5 [0.1, 0.9] on target, happy 0.5 [0.1, 0.9] on target)"
    drawn = found.plot(direction="calm")
    assert drawn.title == "What calm moves"
    assert "person: +0.3" in drawn.svg
    with pytest.raises(ConfigError, match="no direction 'x'; expected one of calm, happy"):
        found.plot(direction="x")
    with pytest.raises(ConfigError, match="nothing of kind 'tokens' was looked at; expected one of category"):
        found.plot(kind="tokens")


# pairs of tensors


def test_pairs_of_tensors_are_the_cosines_of_the_rows():
    rng = np.random.default_rng(0)
    rows, glosses = (rng.standard_normal((40, d)).astype(np.float32) for d in (12, 8))
    made = api.map_pairs(rows, glosses, min_interference=0.3, max_similarity=0.2)
    unit, words = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (rows, glosses))
    cosine, alike = unit @ unit.T, words @ words.T
    i, j = np.triu_indices(40, 1)
    kept = (np.abs(cosine[i, j]) >= 0.3) & (alike[i, j] < 0.2)
    assert list(zip(made.pairs["i"].to_pylist(), made.pairs["j"].to_pylist(), strict=True)) == list(
        zip(i[kept].tolist(), j[kept].tolist(), strict=True)
    )
    np.testing.assert_allclose(made.pairs["interference"].to_numpy(), cosine[i, j][kept], atol=1e-5)
    with pytest.raises(MismatchError, match="39 embeddings for 40 features"):
        api.map_pairs(rows, glosses[1:])


def test_glosses_are_embedded_and_a_missing_one_has_no_similarity():
    rows = np.eye(3, 4, dtype=np.float32) + 0.5
    glosses = ["the sea and its ships", "ships at sea", None]
    made = api.map_pairs(rows, glosses, min_interference=0.1, max_similarity=1.0)
    assert {(r["i"], r["j"]) for r in made.pairs.to_pylist()} == {(0, 1)}
    frame = np.array([*glosses[:2], np.nan], dtype=object)  # a column of pandas
    assert api.map_pairs(rows, frame, min_interference=0.1, max_similarity=1.0).pairs.equals(made.pairs)
    with pytest.raises(MismatchError, match="gloss of feature 1 is 7"):
        api.map_pairs(rows, ["a", 7, None])


def test_a_map_of_one_pair_alone(results):
    pairs = results[1]
    one = pairs.pairs.slice(3, 1).to_pylist()[0]
    alone = pairs.only((one["j"], one["i"]))
    assert alone.pairs.to_pylist() == [one]
    assert alone.partners is pairs.partners
    with pytest.raises(ConfigError, match=r"pair \(0, 0\) is not listed"):
        pairs.only((one["i"], one["j"]), (0, 0))


# progress


class Screen:
    """IPython's display, remembered."""

    def __init__(self):
        self.lines = []

    def __call__(self, line, *, display_id):
        assert display_id
        self.lines.append(line.text)
        return self

    def update(self, line):
        self.lines.append(line.text)


@pytest.fixture
def screen(monkeypatch):
    """A notebook in which somebody waits."""
    made = Screen()
    monkeypatch.setattr(progress, "for_session", lambda: progress.Notebook(made))
    return made


def test_a_door_tells_who_waits_and_is_quiet_otherwise(screen, monkeypatch):
    def work(n, *, reporter=progress.SILENT):
        return list(reporter.track(range(n), total=n, label="steps"))

    monkeypatch.setattr(progress, "FRAME_S", -1.0)
    door = progress.spoken(work, "work")
    assert door(3) == [0, 1, 2]
    assert screen.lines[0] == "work …"
    assert re.match(r"work · steps 2/3 · [\d.e+]+/s · \d+ s left", screen.lines[2])
    assert screen.lines[-1] == ""  # it took no two seconds
    screen.lines.clear()
    assert door(3, reporter=progress.SILENT) == [0, 1, 2]
    assert progress.spoken(lambda: door(2), "outer")() == [0, 1]
    assert screen.lines == ["outer …", ""]  # the inner one is silent
    monkeypatch.setattr(progress, "for_session", lambda: progress.SILENT)
    screen.lines.clear()
    assert door(2) == [0, 1]
    assert screen.lines == []


def test_an_error_ends_the_line_and_the_next_door_speaks_again(screen):
    def fails():
        raise ConfigError("no")

    for _ in range(2):
        with pytest.raises(ConfigError):
            progress.spoken(fails, "fails")()
    assert screen.lines == ["fails …", ""] * 2


def test_warnings_reach_who_waits(screen, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("polysem"), "handlers", [logging.NullHandler()])
    stderr = std.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress.spoken(lambda: logging.getLogger("polysem.saes").warning("mind the gap"), "w")()
    assert stderr.getvalue() == "polysem: mind the gap\n"


def test_a_notebook_is_told_from_ipython_without_importing_it(monkeypatch):
    class Shell:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Shell)

        class display:
            display = staticmethod(lambda line, display_id: None)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert isinstance(progress.for_session(), progress.Notebook)
    monkeypatch.setattr(Shell, "kernel", property(), raising=False)
    monkeypatch.delattr(Shell, "kernel")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.for_session() is progress.SILENT


def test_doors_of_the_package_are_spoken():
    assert polysem.load_model.__wrapped__ is __import__("polysem.models", fromlist=["x"]).load_model
    assert polysem.load_model.__doc__
