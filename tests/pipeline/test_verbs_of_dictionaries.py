"""Verbs that read dictionaries and no run, on the zoo: what they print, and what they write."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.scaling import random_rows
from polysem.training.write import write
from polysem.types import Site
from support.synthetic import SyntheticStudy, synthetic_run

pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")


def test_relations_are_printed_and_written(tmp_path) -> None:
    sae = "zoo:gpt2/blocks.2.hook_resid_post"
    arguments = ["relations", sae, "--corpus", "zoo:samples", "--tokens", "3000", "--probes", "5"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert told["features"] == 1536
    assert told["pairs"]
    assert told["meta"]["explained"] > told["meta"]["turned"]
    for name in ("relations", "absorption", "meta_code"):
        assert (tmp_path / "out" / f"{name}.parquet").is_file()


def test_a_run_without_the_dictionary_is_an_error_before_anything_is_made(tmp_path) -> None:
    run = synthetic_run(tmp_path / "run", SyntheticStudy(n_features=90, n_prompts=4), stages=("features",))
    done = CliRunner().invoke(
        app,
        [
            "relations",
            "zoo:gpt2/blocks.2.hook_resid_post",
            "--corpus",
            "zoo:samples",
            "--without",
            str(run),
        ],
    )
    assert done.exit_code == 1
    assert "has no SAE" in done.output


def test_the_command_line_compares_two_seeds(tmp_path):
    refs = [f"zoo:gpt2/blocks.2.hook_resid_post{seed}" for seed in ("", "-seed1")]
    ended = CliRunner().invoke(app, ["replicate", *refs, "--out", str(tmp_path / "match.json")]).stdout
    assert "PW-MCC 0.47" in ended
    assert "by regression to the mean" in ended
    found = json.loads((tmp_path / "match.json").read_text())
    assert (found["schema"], found["version"]) == ("polysem/replicate", 1)
    assert [d["ref"] for d in found["dictionaries"]] == refs
    assert len(found["pairs"][0]["matching"]["first"]) == 1536
    beside = CliRunner().invoke(app, ["compare", *refs]).stdout
    assert re.search(r"features +1,536 +1,536", beside)
    assert "PW-MCC 0.47" in beside


def test_scaling_writes_what_one_seed_cannot_know_as_null(tmp_path: Path) -> None:
    """Three widths and one seed have no interval; two sparsities give measures at one reconstruction."""
    site, refs = Site.parse("blocks.2.hook_resid_post"), []
    for width, k in ((32, 4), (48, 4), (48, 16), (64, 4)):
        made = random_rows(width, 192, seed=width)
        made[1::2] = made[::2] + 0.1 * made[1::2]  # close pairs, so that `apart` is known
        rows = torch.tensor(made, dtype=torch.float32)
        weights = {
            "W_enc": rows.T.contiguous(),
            "b_enc": torch.zeros(width),
            "W_dec": rows,
            "b_dec": torch.zeros(192),
        }
        refs.append(str(tmp_path / f"w{width}-k{k}"))
        write(
            Path(refs[-1]), weights, reads=site, writes=site, k=k, about={"model_name": "zoo:gpt2"}, card={}
        )
    out = tmp_path / "scaling.json"
    made = CliRunner().invoke(
        app, ["scaling", *refs, "--corpus", "zoo:samples", "--tokens", "1000", "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    told = json.loads(out.read_text())
    assert told["k"] == 4
    assert {r["width"] for r in told["dictionaries"]} == {32, 48, 64}
    assert told["fits"]["learnt, capacity"]["lo"] is None
    assert [r["width"] for r in told["at_one_fvu"]] == [48]
