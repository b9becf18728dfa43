"""The command line: what it prints, where, and how it ends."""

import json
import logging
import re
import shlex
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from polysem.cli.app import app, hoisted
from polysem.cli.said import say_findings
from polysem.config import Study, parse_study
from polysem.progress import SILENT, on_stderr
from polysem.report.source import Run
from support.synthetic import SyntheticStudy, synthetic_run


def polysem(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("runs") / "done", SyntheticStudy())


def test_init_prints_a_study_with_every_key():
    printed = polysem("init")
    assert printed.exit_code == 0
    study = parse_study(printed.stdout)
    for section, field in Study.model_fields.items():
        model = field.annotation
        for key in getattr(model, "model_fields", {}):
            assert f"{key} = " in printed.stdout, f"[{section}] {key} is not in what `polysem init` prints"
    fresh = parse_study('[model]\nref = "zoo:gpt2"\n[[saes]]\nref = "zoo:x"')
    for section in ("corpus", "features", "glosses", "pairs", "prompts", "plan", "effects"):
        assert getattr(study, section) == getattr(fresh, section), f"[{section}] is not at its defaults"


def test_a_wrong_study_ends_with_2_and_says_which_key(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[model]\nreff = "zoo:gpt2"\n[[saes]]\nref = "zoo:x"\n')
    ended = polysem("run", str(path), "--out", str(tmp_path / "out"))
    assert ended.exit_code == 2
    assert "model.reff" in ended.stderr
    assert "did you mean 'ref'" in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "absent.toml"), 2, "absent.toml"),
        (("status", "no-such-run"), 1, "no-such-run"),
        (("verify", "no-such-run"), 1, "no-such-run"),
        (("frobnicate",), 2, "frobnicate"),
        (("trials", "absent.toml", "--shard", "3"), 2, "K/N"),
    ],
)
def test_failures_end_with_their_code_and_one_message(arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = polysem(*arguments)
    assert ended.exit_code == code
    assert says in ended.stderr
    assert "Traceback" not in ended.output
    assert ended.stdout == ""


def test_a_model_that_is_not_there_ends_with_1_and_the_next_command(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[model]\nref = "zoo:gpt3"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_resid_post"\n')
    ended = polysem("run", str(path), "--out", str(tmp_path / "out"))
    assert ended.exit_code == 1
    assert "gpt3" in ended.stderr
    assert "next: " in ended.stderr


FOLDER_VERBS = [
    ("explore", "X", "--export", "E"), ("status", "X"), ("verify", "X"), ("compare", "X", "X"), ("push", "X", "a/b", "--list"),
    ("export-neuronpedia", "X", "--out", "E", "--sae", "a", "--model-id", "m", "--source-id", "s"), ("defend", "X"),
    ("judge", "X", "P"), ("explain", "X", "P"),
    *((verb, "X") for verb in (
        "report", "run", "plan", "effects", "check", "atlas", "generate", "joint", "layers", "guard", "transfer", "side-effects",
    )),
]  # fmt: skip


OTHERWISE = ("a sibling", "the folder above", "nothing", "a file")


@pytest.mark.parametrize(
    ("what", "words"),
    [("a subfolder", words) for words in FOLDER_VERBS]
    + [
        (what, words)
        for what in OTHERWISE
        for words in FOLDER_VERBS
        if words[0] in ("explore", "compare", "report")
    ],
)
def test_a_wrong_folder_is_told_which_are_runs(what, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "my runs" / "done"
    (run / "features").mkdir(parents=True)
    (run / "study.toml").write_text('[model]\nref = "zoo:gpt2"\n[[saes]]\nref = "zoo:x"\n')
    (run / "transfer.toml").write_text("")
    (run / "features" / "manifest.json").write_text("{}")
    (tmp_path / "judges.toml").write_text(polysem("judge", "--init").stdout)
    (tmp_path / "concept.toml").write_text('words = "color"\n')
    (run.parent / "notes.txt").write_text("x")
    (tmp_path / "my runs" / "other").mkdir()
    given = {
        "a subfolder": run / "features", "a sibling": run.parent / "other", "the folder above": run.parent,
        "nothing": run.parent / "dome", "a file": run.parent / "notes.txt",
    }[what]  # fmt: skip
    more = {"guard": ("concept.toml",), "side-effects": ("--features", "1")}.get(words[0], ())
    arguments = [
        {"X": str(given), "P": "judges.toml", "E": str(tmp_path / "e")}.get(word, word)
        for word in (*words, *more)
    ]
    ended = polysem(*arguments)
    assert ended.exit_code in (1, 2), ended.output
    takes_file = words in FOLDER_VERBS[9:]
    if takes_file and what in ("nothing", "a file"):
        return  # no folder: a study that is not there, or not one
    hint = ended.stderr.partition("next: ")[2]
    assert "init" not in hint
    told = shlex.split(hint.partition(": ")[2].replace(",", " ").replace("--out", " "))
    assert told, ended.stderr
    file = run / ("transfer.toml" if words[0] == "transfer" else "study.toml")
    assert told == ([str(file), str(run)] if takes_file else [str(run)])
    assert not (tmp_path / "e").exists()


def test_a_folder_of_a_run_in_place_of_its_study_file(finished):
    hint = polysem("report", str(finished)).stderr.partition("next: ")[2]
    words = shlex.split(hint.partition(": ")[2])
    assert words == [str(finished / "study.toml"), "--out", str(finished)]


def test_a_transfer_studys_folder_is_named_where_a_study_is_asked_for(tmp_path):
    (tmp_path / "transfer.toml").write_text("")
    for words in (("explore", "--export", str(tmp_path / "e")), ("push", "a/b", "--list")):
        said = polysem(words[0], str(tmp_path), *words[1:]).stderr
        assert "it is the folder of a transfer study and holds no study.toml" in said


def test_status_as_text_and_as_json(finished):
    text = polysem("status", str(finished))
    stages = json.loads(polysem("status", str(finished), "--json").stdout)
    assert text.exit_code == 0
    assert [row["stage"] for row in stages] == [line.split()[0] for line in text.stdout.splitlines()]
    assert {row["stage"] for row in stages} >= {"features", "pairs", "plan", "trials", "effects", "report"}


def test_a_run_of_an_earlier_format_is_stale_with_the_command_that_goes_on_and_each_finding_once(tmp_path):
    run = synthetic_run(tmp_path / "run", SyntheticStudy())
    manifest = run / "pairs" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    ended = polysem("status", str(run))
    assert "pairs     stale    " in ended.stdout
    assert ended.stderr == f"  next: polysem run {run}/study.toml --out {run}\n"
    findings = polysem("verify", str(run), "--sample", "0").stdout.splitlines()
    assert sum(str(manifest) in line for line in findings) == 1


def test_a_run_all_of_an_earlier_format_is_told_in_one_line_with_one_next(tmp_path):
    run = synthetic_run(tmp_path / "run", SyntheticStudy())
    for manifest in run.glob("*/manifest.json"):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    told = f"{run} was written by another version of polysem: its manifests are of format 1, expected 2"
    again = f"  next: polysem run {run}/study.toml --out {run}\n"
    ended = polysem("status", str(run))
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, f"stale    {told}\n", again)
    for verb in (
        ("verify", str(run)),
        ("explore", str(run)),
        ("explore", str(run), "--export", str(tmp_path / "site")),
    ):
        ended = polysem(*verb)
        assert (ended.exit_code, ended.stdout, ended.stderr) == (1, "", f"error: {told}\n{again}")
    assert not (tmp_path / "site").exists()
    assert {row["state"] for row in json.loads(polysem("status", str(run), "--json").stdout)} <= {
        "stale",
        "absent",
    }


def test_verify_ends_with_1_where_a_byte_was_changed(tmp_path):
    run = synthetic_run(tmp_path / "run", SyntheticStudy())
    file = run / "pairs" / "pairs.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ended = polysem("verify", str(run), "--sample", "0")
    assert ended.exit_code == 1
    assert "pairs.parquet" in ended.stdout


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from polysem.cli.app import app\n"
        "try: app(['--help'], prog_name='polysem')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'statsmodels', 'pyarrow', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for verb in (
        "run",
        "demo",
        "features",
        "pairs",
        "plan",
        "trials",
        "response",
        "effects",
        "report",
        "status",
        "verify",
    ):
        assert verb in ended.stdout
    printed = polysem("--version").stdout.splitlines()
    assert printed[0][0].isdigit()
    for package in ("python", "torch", "transformers", "numpy"):
        assert any(re.match(rf"{package} \d", line) for line in printed[1:])


def test_help_cuts_nothing_at_80_columns():
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, said.splitlines())) <= 80
    commands = said[said.index("Commands:") : said.index("Exit codes")]
    assert "..." not in commands
    for name, verb in typer.main.get_command(app).commands.items():
        assert re.search(rf"^  {name} ", commands, re.M), name
        assert verb.help


def test_options_of_every_verb_may_stand_behind_it():
    given = ["compare", "A", "-vv", "B", "--quiet", "--json"]
    assert hoisted(given) == ["-vv", "--quiet", "compare", "A", "B", "--json"]
    assert hoisted(["run", "a-v.toml"]) == ["run", "a-v.toml"]


def test_a_warning_is_said_once_an_empty_one_never_and_none_when_quiet(capsys):
    polysem("zoo")
    log = logging.getLogger("polysem.saes")
    for _ in range(2):
        log.warning("mind %s", "the gap")
        log.warning(" ")
    assert capsys.readouterr().err == "WARNING polysem.saes: mind the gap\n"
    polysem("-q", "zoo")
    log.warning("another")
    log.error("broken")
    assert capsys.readouterr().err == "ERROR polysem.saes: broken\n"
    assert on_stderr() is SILENT
    polysem("zoo")
    assert on_stderr() is not SILENT


def test_two_runs_side_by_side(finished, tmp_path):
    weak = synthetic_run(tmp_path / "weak", SyntheticStudy(slope=0.0, n_prompts=12), name="weak")
    said = polysem("compare", str(finished), str(weak)).stdout
    assert re.search(r"prompts.n +16 +12", said)
    assert "the intervals do not overlap" in said
    assert max(map(len, said.splitlines())) <= 120
    found = json.loads(polysem("compare", str(finished), str(weak), "--json").stdout)
    slope = found["findings"][0]
    effects = {
        name: next(
            row
            for row in Run.open(run).effects.to_pylist()
            if row["contrast"] == "slope_interference" and "sae=*; outcome=logodds; tokens=in" in row["group"]
        )
        for name, run in (("a", finished), ("b", weak))
    }
    for (
        name,
        row,
    ) in effects.items():  # told over the reach of interference: by one factor, sign and zero kept
        ratio = slope[name]["estimate"] / row["estimate"]
        assert slope[name]["lo"] / row["lo"] == pytest.approx(ratio)
        assert 0 < ratio < 1
    assert slope["intervals_overlap"] is False
    listed = [
        set(map(tuple, Run.open(r).pairs.select(["sae", "i", "j"]).to_pandas().to_numpy()))
        for r in (finished, weak)
    ]
    assert found["pairs"]["listed"] == [len(own) for own in listed]
    assert found["pairs"]["listed_in_both"] == len(listed[0] & listed[1])


def test_a_run_beside_itself_is_the_same(finished):
    found = json.loads(polysem("compare", str(finished), str(finished), "--json").stdout)
    assert found["settings"] == {}
    assert found["pairs"]["rank_correlation"] == pytest.approx(1.0)
    assert found["pairs"]["same_sign"] == 1.0
    assert all(f["a"] == f["b"] for f in found["findings"])


def test_a_run_without_effects_can_be_compared(finished, tmp_path):
    half = synthetic_run(tmp_path / "half", SyntheticStudy(), stages=("features", "pairs"))
    found = json.loads(polysem("compare", str(finished), str(half), "--json").stdout)
    assert found["sizes"]["trials"][1] is None
    assert all(f["b"] is None for f in found["findings"])
    assert "not asked" in polysem("compare", str(finished), str(half)).stdout


def test_a_run_ends_with_four_findings_and_the_next_command(finished, capsys):
    say_findings(finished)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(
        "  Does interference predict how much the tokens that activate the target move? predicts: +"
    )
    assert lines[-1] == f"  next: polysem explore {finished} --live"


@pytest.mark.parametrize("verb", ["status", "verify", "compare"])
def test_results_are_json_where_asked(verb, finished):
    runs = [str(finished)] * (2 if verb == "compare" else 1)
    more = ["--sample", "0"] if verb == "verify" else []
    assert json.loads(polysem(verb, *runs, "--json", *more).stdout)


def test_check_as_json_names_problem_and_next_step(tmp_path):
    study = tmp_path / "s.toml"
    study.write_text('name = "s"\n[model]\nref = "./none"\n[[saes]]\nref = "./nor-this"\n')
    ended = polysem("check", str(study), "--json")
    found = json.loads(ended.stdout)
    assert ended.exit_code == 2
    assert found["problems"]
    assert all(p["problem"] and "next" in p for p in found["problems"])


def test_zoo_lists_what_a_study_may_name():
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    listed = polysem("zoo").stdout.splitlines()
    assert "models      zoo:gpt2" in listed
    assert any(line.startswith("saes        zoo:gpt2/blocks.2.hook_resid_post") for line in listed)


TRAIN = (
    "train-sae",
    "no/model",
    "--site",
    "blocks.1.hook_resid_post",
    "--corpus",
    "none.txt",
    "--out",
    "out",
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TRAIN, "--prefixes", "8,many"), "--prefixes 8,many: expected whole numbers"),
        ((*TRAIN, "--prefixes", "1_0"), "--prefixes 1_0: expected whole numbers"),
        ((*TRAIN, "--epochs", "nan"), "Invalid value for '--epochs'"),
        ((*TRAIN, "--epochs", "inf"), "--epochs inf"),
        ((*TRAIN, "--lr", "nan"), "Invalid value for '--lr'"),
        ((*TRAIN[:-1], "/"), "expected a folder with a name"),
        ((*TRAIN[:-1], "x" * 5000), "too many for a path"),
        (("side-effects", "study.toml", "--features", "1_000"), "--features 1_000: expected whole numbers"),
        (("side-effects", "study.toml", "--features", "-1"), "--features -1: expected whole numbers"),
        (("trials", "study.toml", "--shard", f"1/{'9' * 5000}"), "expected K/N"),
    ],
)
def test_odd_words_of_options_are_refused_before_anything_is_read(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = polysem(*arguments)
    assert isinstance(ended.exception, SystemExit)
    assert said in ended.stderr
    assert list(tmp_path.iterdir()) == []
