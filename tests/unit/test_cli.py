"""The command line: what it prints, where, and how it ends."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.config import Study, parse_study
from polysem.testing.synthetic import SyntheticStudy, synthetic_run


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


def test_status_as_text_and_as_json(finished):
    text = polysem("status", str(finished))
    stages = json.loads(polysem("status", str(finished), "--json").stdout)
    assert text.exit_code == 0
    assert [row["stage"] for row in stages] == [line.split()[0] for line in text.stdout.splitlines()]
    assert {row["stage"] for row in stages} >= {"features", "pairs", "plan", "trials", "effects", "report"}


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
    printed = polysem("--version").stdout.strip()
    assert printed
    assert printed[0].isdigit()


def test_zoo_lists_what_a_study_may_name():
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    listed = polysem("zoo").stdout.splitlines()
    assert "models  zoo:gpt2" in listed
    assert any(line.startswith("saes    zoo:gpt2/blocks.2.hook_resid_post") for line in listed)
