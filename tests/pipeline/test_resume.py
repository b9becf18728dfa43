"""A run that is killed at random points, and then finished, gives the bytes of a run that was left alone: a study, and what is
made beside it, several pushes at once and side effects."""

import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from polysem.config import parse_study
from polysem.engine import make_beside, run_study
from polysem.engine.joint import JointOptions
from polysem.engine.side_effects import SideEffectsOptions
from polysem.engine.verify import verify_run
from polysem.models import load_model
from support.sae_fixtures import WRITERS, planted
from support.tiny import save_tiny_model

N_KILLS, N_PUSH_KILLS = 20, 5
TIMEOUT_S = 120

STUDY = """
name = "killed"
[model]
ref = "{folder}/model"
device = "cpu"
[[saes]]
ref = "{folder}/mlp"
site = "blocks.1.hook_mlp_out"
max_fvu = 1e6
allow_other_model = true
[[saes]]
ref = "{folder}/resid"
site = "blocks.0.hook_resid_post"
max_fvu = 1e6
allow_other_model = true
[corpus]
ref = "{folder}/text.txt"
n_tokens = 4000
context = 32
[prompts]
source = "file:{folder}/prompts.txt"
n = 4
[pairs]
max_similarity = 1.0
[plan]
n_targets = 3
sources_per_bin = 2
n_random = 1
doses = [0.1]
dose_unit = "resid_norm"
"""


def run(study: str, out: Path) -> None:
    """What the killed processes do."""
    run_study(parse_study(study), out)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("parts")
    save_tiny_model("gpt2", folder / "model")
    model = load_model(str(folder / "model"), device="cpu")
    rng = np.random.default_rng(0)

    def draw(n_tokens: int) -> str:
        return model.detokenize(rng.integers(4, model.spec.d_vocab, n_tokens).tolist())

    (folder / "text.txt").write_text("\n\n".join(draw(40) for _ in range(300)), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(draw(8) for _ in range(4)), encoding="utf-8")
    for name, layer, hook in (("mlp", 1, "hook_mlp_out"), ("resid", 0, "hook_resid_post")):
        WRITERS["saelens-v6-topk"](
            folder / name, planted(d_in=model.spec.d_model, layer=layer, hook=hook, k=4, seed=layer)
        )
    return STUDY.format(folder=folder)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported and no thread running, so that a kill hits the study."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "polysem.engine.making",
            "polysem.engine.joint",
            "polysem.joint.run",
            "polysem.models.load",
            "polysem.features",
            __name__,
        ]
    )
    return context


def bytes_of(out: Path) -> dict[str, bytes]:
    files = [*out.rglob("*.parquet"), *out.rglob("*.safetensors")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def test_twenty_kills_change_no_byte(study, processes, tmp_path):
    times = []
    for name in ("first", "untouched"):  # the first also fills the caches of the process server
        started = time.monotonic()
        process = processes.Process(target=run, args=(study, tmp_path / name))
        process.start()
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
        times.append(time.monotonic() - started)
    expected = bytes_of(tmp_path / "untouched")
    assert len(expected) >= 15
    assert bytes_of(tmp_path / "first") == expected

    rng = np.random.default_rng(1)
    out, n_out, kills, found_partial = tmp_path / "killed-0", 0, 0, 0
    while kills < N_KILLS:
        process = processes.Process(target=run, args=(study, out))
        process.start()
        process.join(rng.uniform(0.02, 0.7) * times[1])
        if process.exitcode is None:
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            found_partial += any(out.rglob("*")) if out.exists() else 0
            continue
        # also one that ended by itself before the signal reached it
        assert process.exitcode == 0, "a killed run could not be continued"
        assert bytes_of(out) == expected
        n_out += 1
        out = tmp_path / f"killed-{n_out}"
    run(study, out)
    assert bytes_of(out) == expected
    assert verify_run(out, sample=1) == []
    assert found_partial >= N_KILLS // 2, "too few kills fell into the study itself"


JOINT = """
[joint]
sizes = [2]
draws = 2
pools = 2
pool = 3
rotations = 1
pairs = 4
lift_tokens = 500
plans = 1
candidates = 2
"""


def push(out: Path, stage: str) -> None:
    """What the killed processes do."""
    if stage == "joint":
        make_beside("joint", out, JointOptions())
    else:
        make_beside(
            "side-effects",
            out,
            SideEffectsOptions(
                features=(1, 5), sae="blocks.0.hook_resid_post", n_null=6, tokens=500, repair=True
            ),
        )


@pytest.mark.parametrize(("stage", "table"), [("joint", "plans"), ("side-effects", "side_effects")])
def test_pushes_that_are_killed_give_the_same_bytes_and_go_into_the_report(
    stage, table, study, processes, tmp_path
):
    out = tmp_path / "untouched"
    run_study(parse_study(study + JOINT), out)
    assert f'id="{stage}"' not in (out / "report.html").read_text(encoding="utf-8")
    shutil.copytree(out, tmp_path / "killed")
    started = time.monotonic()
    push(out, stage)
    lasts = time.monotonic() - started
    assert f'<section id="{stage}"' in (out / "report.html").read_text(encoding="utf-8")
    expected, rng, kills = bytes_of(out), np.random.default_rng(2), 0
    assert any(name.startswith(f"{stage}/{table}") for name in expected)
    while kills < N_PUSH_KILLS:
        process = processes.Process(target=push, args=(tmp_path / "killed", stage))
        process.start()
        process.join(rng.uniform(0.05, 0.9) * lasts)
        process.kill()
        process.join()
        kills += 1
        assert process.exitcode in (0, -signal.SIGKILL)
    push(tmp_path / "killed", stage)
    assert bytes_of(tmp_path / "killed") == expected
    pages = [(folder / "report.html").read_bytes() for folder in (out, tmp_path / "killed")]
    assert pages[0] == pages[1]
    assert verify_run(out, sample=1) == []
