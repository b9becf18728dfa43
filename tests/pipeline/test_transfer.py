"""Transfer studies as a user runs them: two zoo sources to the zoo's Llama, in this process and over HTTP; a run that is
killed pays for nothing twice."""

import json
import multiprocessing
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")

from polysem.engine import make_beside, run_status, run_transfer, verify_run
from polysem.engine.making import DefendOptions
from polysem.errors import ConfigError, StoreError
from polysem.http import Retries
from polysem.models import load_model
from polysem.report import open_run
from polysem.targets import LocalTarget
from polysem.transfer import read_transfer
from polysem.transfer.config import load_transfer
from polysem.transfer.result import FOLDER
from support.results import check_result
from support.served import Books, Server, distribution_of, kept_port

FAST = Retries(attempts=5, first=0.001, sleep=lambda seconds: None)
VOCABULARY = 4096
THREADS = 3
ROUNDING = 1e-4
"""nats: the server runs one row at a time, the local target many; float32 sums differ in their last bits"""

STUDY = """
name = "zoo"
seed = 3
[[sources]]
model = "zoo:gpt2"
sae = "zoo:gpt2/blocks.2.hook_resid_post"
device = "cpu"
[[sources]]
model = "zoo:neox"
sae = "zoo:neox/blocks.2.hook_resid_post"
device = "cpu"
{targets}
[corpus]
n_tokens = 12000
[shared]
high = 0.3
min_active = 6
[categories]
names = ["person", "time"]
n_sentences = 2
[pools]
arms = ["target", "shared", "random"]
n_tokens = 4
size = 8
n_reference = 19
n_random = 19
[frames]
repeats = 2
[directions]
n_sentences = 1
[cost]
n_texts = 2
n_prefixes = 1
[test]
success_k = {k}
"""
LOCAL = '[[targets]]\nname = "here"\nmodel = "zoo:llama"\ndevice = "cpu"\n'


INSIDE = LOCAL + 'sae = "zoo:llama/blocks.3.hook_resid_post"\n'


def served(url: str, *, k: int, name: str = "there", whole: bool = False, budget: int = 5000) -> str:
    size = f"vocabulary = {VOCABULARY}\n" if whole else ""
    return (
        f'[[targets]]\nname = "{name}"\nkind = "completions"\nurl = "{url}"\nmodel = "test-model"\nk = {k}\n{size}'
        f"max_requests = {budget}\ntokenizer = 'zoo:llama'\nconcurrency = {THREADS}\nprice_per_request = 0.01\nprice_unit = 'EUR'\n"
    )


def study(folder: Path, targets: str, *, k: int = 10) -> Path:
    path = folder / "transfer.toml"
    path.write_text(STUDY.format(targets=targets, k=k), encoding="utf-8")
    return path


def lists(table, name):
    return np.array(table[name].to_pylist(), dtype=float)


@pytest.fixture(scope="module")
def llama():
    return LocalTarget(load_model("zoo:llama", device="cpu"))


@pytest.fixture(scope="module")
def white_box(tmp_path_factory):
    """The study on the model in this process."""
    folder = tmp_path_factory.mktemp("local")
    said: list[str] = []
    run_transfer(study(folder, INSIDE), folder / "out", say=said.append)
    return folder / "out", said


def test_white_box(white_box):
    out, said = white_box
    tables = read_transfer(out)
    (shared,) = tables["transfer_shared"].to_pylist()
    assert shared["n_matched"] > 100
    assert shared["n_shared"] > 3 * shared["expected"], "two models of one text share structure"
    assert shared["lift_lo"] > 1
    effects = {(r["contrast"], r["arm"], r["category"]): r for r in tables["transfer_effects"].to_pylist()}
    for category in ("person", "time"):
        ceiling = effects["logodds", "target", category]
        assert ceiling["estimate"] > 0.3, "naming the category's own words raises them"
        assert ceiling["p"] <= 0.05
        assert effects["logodds", "shared", category]["n_reference"] == 19
        assert ceiling["bound_lo"] == pytest.approx(ceiling["estimate"], abs=1e-9)
    assert any("person: " in line and "words are one token" in line for line in said)
    trials = tables["transfer_trials"]
    assert trials.num_rows == 2 * 2 * (1 + (1 + 19) + 19)
    assert lists(trials, "kl_lo").min() > 0


def test_a_finished_study_is_opened_as_a_result(white_box, tmp_path):
    found = open_run(white_box[0])
    check_result(found, tmp_path)
    assert found.transfer_effects.equals(read_transfer(white_box[0])["transfer_effects"])
    assert found.plot().title == "What the strings of each arm do to here"
    with pytest.raises(ConfigError, match="no arm has an estimate of 'nothing'"):
        found.plot(contrast="nothing")
    with pytest.raises(AttributeError, match="no 'pears'; its tables are transfer_"):
        _ = found.pears


def test_the_report_shows_every_declared_category_and_loads_nothing(white_box):
    from polysem.report.html import write_page

    page = write_page(white_box[0], "transfer").read_text(encoding="utf-8")
    rows = read_transfer(white_box[0])["transfer_effects"].to_pylist()
    for row in rows:
        assert f'<td class="words">{row["arm"]}</td><td class="words">{row["category"]}</td>' in page
    for what in ("http://", "https://", "<script", "nan", " inf"):
        assert what not in page.replace("arXiv", ""), what
    assert "36.93**" in page, "the paper's table stands beside"
    assert write_page(white_box[0], "transfer").read_text(encoding="utf-8") == page


def test_directions_in_the_target_are_what_a_push_does(white_box):
    """One row again by hand, doses, and that every feature is in the arm that its strings put it in."""
    import torch

    from polysem.edits import Add
    from polysem.saes import load_sae

    out, said = white_box
    tables = read_transfer(out)
    steered = tables["transfer_steered"].to_pylist()
    assert any("features are matched to both sources" in line for line in said)
    taken = [r for r in steered if r["reached"]]
    assert len(taken) > 0.95 * len(steered)
    assert {r["kind"] for r in taken} == {"feature", "gradient"}
    for r in taken:
        assert r["kl"] == pytest.approx(0.01, rel=0.021)
    model = load_model("zoo:llama", device="cpu")
    sae = load_sae("zoo:llama/blocks.3.hook_resid_post", model=model)
    row = next(r for r in taken if r["kind"] == "feature")
    target = LocalTarget(model)
    from polysem.categories import load_categories
    from polysem.transfer.categories import load_sentences

    categories = load_categories("builtin", ["person", "time"])
    sentence = load_sentences("builtin", ["person", "time"], n=2)[row["category"]][row["sentence"]]
    ids = torch.tensor([model.tokenize(sentence, prepend_bos=True)])
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[0, -1] = True
    unit = sae.W_dec[row["feature"]] / sae.W_dec[row["feature"]].norm()
    inside = torch.tensor(categories.inside(target.vocabulary, word_start=True))
    change = []
    for sign in (1, -1):
        p = (
            model.logits(ids, [Add(sae.site, sign * row["strength"] * unit[None], mask)])[0, -1]
            .double()
            .softmax(-1)
        )
        change.append([float((p[c].sum() / p[~c].sum()).log()) for c in inside])
    odd = (np.array(change[0]) - np.array(change[1])) / 2
    np.testing.assert_allclose(row["logodds"], odd, atol=1e-4)
    effects = tables["transfer_directions"].to_pylist()
    ceiling = [
        r for r in effects if r["arm"] == "target" and r["contrast"] == "logodds" and r["kind"] == "feature"
    ]
    assert len(ceiling) == 2
    assert all(r["treated"] is None or np.isfinite(r["treated"]) for r in effects)
    assert {r["arm"] for r in effects} == {"target", "shared", "source_only", "neither"}


def test_costs_are_of_the_claimed_dose(white_box):
    rows = read_transfer(white_box[0])["transfer_cost"].to_pylist()
    assert {r["kind"] for r in rows} == {"prompt", "feature", "gradient"}
    prompts = [r for r in rows if r["kind"] == "prompt"]
    assert {(r["arm"], r["category"]) for r in prompts} == {
        (a, c) for a in ("target", "shared", "random") for c in ("person", "time")
    }
    for r in rows:
        assert 2 < r["base"] < 8, "nats per token of a small model"
        assert r["unit"] == "nats per token"
        assert r["treated"] != 0


def test_status_and_verify_know_transfer_studies(white_box, tmp_path):
    import shutil

    def where(out):
        (status,) = (found for found in run_status(out) if found.stage == "transfer")
        return status.state, status.reason

    assert where(white_box[0]) == ("fresh", "")
    assert verify_run(white_box[0]) == []
    out = tmp_path / "copy"
    shutil.copytree(white_box[0], out)
    file = out / FOLDER / "transfer_effects.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    state, reason = where(out)
    assert state == "stale"
    assert reason.startswith("transfer/transfer_effects.parquet is not the file that was written")
    assert f"transfer: stale: {reason}" in verify_run(out)
    toml = out / "transfer.toml"
    toml.write_text(toml.read_text().replace("seed = 3", "seed = 4"))
    assert where(out)[1].startswith("seed was 3, is 4")
    (out / FOLDER / "manifest.json").unlink()
    assert where(out)[0] == "partial"
    shutil.rmtree(out / FOLDER)
    assert where(out)[0] == "absent"


def test_effects_that_do_not_follow_from_the_trials_are_noticed(white_box, tmp_path):
    import json
    import shutil

    import pyarrow as pa
    import pyarrow.compute as pc

    from polysem.store import io
    from polysem.store.tables import TRANSFER_EFFECTS

    out = tmp_path / "copy"
    shutil.copytree(white_box[0], out)
    file = out / FOLDER / "transfer_effects.parquet"
    table = io.read_table(file, TRANSFER_EFFECTS, rebuild="again")
    at = table.column_names.index("treated")
    table = table.set_column(at, "treated", pc.add(table["treated"], pa.scalar(0.5)))
    digest = io.write_table(file, TRANSFER_EFFECTS.conform(table), TRANSFER_EFFECTS)
    manifest = json.loads((out / FOLDER / "manifest.json").read_text())
    manifest["outputs"][f"{FOLDER}/{file.name}"]["sha256"] = digest  # a careful forger mends the hash, too
    (out / FOLDER / "manifest.json").write_text(json.dumps(manifest))
    (finding,) = verify_run(out)
    assert "do not follow from the trials" in finding


def test_defences_are_judged_on_the_studys_own_prompts(white_box):
    from polysem.report.html import write_page
    from polysem.store import io
    from polysem.store.tables import DEFENCES, PROTECTED

    folder = make_beside("defend", white_box[0], DefendOptions(40), say=lambda text: None)
    rows = io.read_table(folder / "defences.parquet", DEFENCES, rebuild="again").to_pylist()
    found = {(r["defence"], r["arm"], r["category"]): r for r in rows}
    assert {d for d, _, _ in found} == {"monitor", "filter"}
    for r in rows:
        assert r["lo"] <= r["auroc"] <= r["hi"]
        assert (r["n_clean"], r["n_attacked"]) == (40, 2)
    assert found["filter", "shared", "person"]["auroc"] > 0.8, "strings without a sentence are not prose"
    steered = io.read_table(folder / "protected.parquet", PROTECTED, rebuild="again").to_pylist()
    for r in steered:
        assert 0 < r["kept"] <= 1
        assert r["off_after"] < r["off_before"], "what is projected out moves the protected categories less"
    page = write_page(white_box[0], "defend")
    assert "AUROC" in page.read_text(encoding="utf-8")
    assert "http://" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("k", [VOCABULARY, 100])
def test_http_gives_the_same_numbers_within_its_bounds(k, white_box, llama, tmp_path):
    with Server(distribution_of(llama), k_max=k) as server:
        path = study(tmp_path, served(server.url, k=k, whole=k == VOCABULARY))
        run_transfer(path, tmp_path / "out", retries=FAST)
        assert set(server.books.charged.values()) == {1}
    mine, theirs = (read_transfer(out) for out in (white_box[0], tmp_path / "out"))
    a, b = mine["transfer_trials"], theirs["transfer_trials"]
    key = ["category", "arm", "pool", "sentence", "draw"]
    assert a.select(key).equals(b.select(key))
    truth = lists(a, "logodds")
    lo, hi = lists(b, "logodds_lo"), lists(b, "logodds_hi")
    assert (lo - ROUNDING <= truth).all()
    assert (truth <= hi + ROUNDING).all()
    assert (lists(b, "mass_lo") - ROUNDING <= lists(a, "mass")).all()
    assert (lists(a, "mass") <= lists(b, "mass_hi") + ROUNDING).all()
    assert (np.array(b["kl_lo"]) <= np.array(a["kl_lo"]) + ROUNDING).all()
    np.testing.assert_array_equal(lists(a, "success"), lists(b, "success"))
    ours, others = (
        {(r["contrast"], r["arm"], r["category"]): r for r in t["transfer_effects"].to_pylist()}
        for t in (mine, theirs)
    )
    (about,) = theirs["transfer_targets"].to_pylist()
    assert about["granted"] == k
    if k == VOCABULARY:
        np.testing.assert_allclose(lists(b, "logodds"), truth, atol=ROUNDING)
        for name, row in ours.items():
            if row["estimate"] is not None:
                assert others[name]["estimate"] == pytest.approx(row["estimate"], abs=ROUNDING)
        assert about["missing"] == 0
    else:
        assert about["missing"] > 0.01
        estimate, sd = lists(b, "logodds"), lists(b, "logodds_sd")
        known = ~np.isnan(estimate)
        assert known.any()
        error = np.abs(estimate - truth)[known]
        assert error.mean() < (1 / 3) * np.abs(truth[known]).mean()
        assert (error <= 1.96 * sd[known] + ROUNDING).mean() > 0.9
        for name, row in others.items():
            lost = row["estimate"] is None and ours[name]["estimate"] is not None
            if row["contrast"] == "logodds" and lost:
                assert "not measurable: " in row["note"]
                assert row["p"] is row["p_adj"] is None
        bounded = 0
        for name, row in others.items():
            true = ours[name]["estimate"]
            if true is not None and row["bound_lo"] is not None:
                assert row["bound_lo"] - ROUNDING <= true
                bounded += 1
            if true is not None and row["bound_hi"] is not None:
                assert true <= row["bound_hi"] + ROUNDING
                bounded += 1
        assert bounded


def test_samples_measure_a_category_that_k_does_not(white_box, llama, tmp_path):
    with Server(distribution_of(llama), k_max=20) as server:
        targets = served(server.url, k=20) + "samples = 128\n"
        said: list[str] = []
        run_transfer(study(tmp_path, targets), tmp_path / "out", retries=FAST, say=said.append)
        assert set(server.books.charged.values()) == {1}
        second = sum("logit_bias" in body for body in server.bodies)
    (plan,) = (line for line in said if "requests, 0 answered before" in line)
    assert f"there: {server.received} requests" in plan, "what is sent is what was said"
    here, there = (
        read_transfer(out)["transfer_trials"].to_pylist() for out in (white_box[0], tmp_path / "out")
    )
    assert second > len(there)
    errors, changes, within = [], [], []
    for mine, other in zip(here, there, strict=True):
        own = mine["categories"].index(mine["category"])
        assert other["share"][own] > 0.5
        changes.append(mine["logodds"][own])
        errors.append(other["logodds"][own] - mine["logodds"][own])
        within.append(abs(errors[-1]) <= 1.96 * other["logodds_sd"][own])
    assert np.abs(errors).mean() < np.abs(changes).mean() / 5
    assert np.mean(within) > 0.9
    (about,) = read_transfer(tmp_path / "out")["transfer_targets"].to_pylist()
    assert "128 samples behind each prompt" in about["conventions"]
    assert about["cost"] == pytest.approx(0.01 * server.received, rel=0.05)


def words_distribution(prompt: str):
    """A scripted model: some words of the categories, with weights that depend on the prompt."""
    texts = tuple(
        f" {w}"
        for w in ["john", "mary", "king", "queen", "day", "night", "year", "week", "the", "a", "of", "stone"]
    )
    z = np.random.default_rng(sum(prompt.encode())).normal(size=len(texts))
    return texts, z - np.logaddexp.reduce(z)


def start(path: str, out: str) -> None:
    """What the killed process does."""
    run_transfer(Path(path), Path(out), retries=FAST)


@pytest.fixture
def port() -> Iterator[int]:
    with kept_port() as kept:
        yield kept


def test_a_killed_run_pays_for_nothing_twice(tmp_path, port):
    context = multiprocessing.get_context("forkserver")
    with Server(words_distribution, port=port) as server:
        path = study(tmp_path, served(server.url, k=12), k=10)
        run_transfer(path, tmp_path / "calm", retries=FAST)
        needed = len(server.books.charged)
        assert set(server.books.charged.values()) == {1}
    books = Books()  # of the provider: they outlive its servers
    kills = (15, 50, 45)  # each inside a part, where as many requests are in flight as there are threads
    for n, first_hang in enumerate(kills):
        # From this request on the server charges and its answers never arrive: the worst moment for a kill.
        troubles = {3: "cut", 5: "busy", 8: "half", **dict.fromkeys(range(first_hang, 10_000), "lost")}
        with Server(words_distribution, port=port, troubles=troubles, books=books) as server:
            process = context.Process(target=start, args=(str(path), str(tmp_path / "killed")))
            process.start()
            assert server.wait_hanging(THREADS, timeout=900.0), f"round {n}: not asked {first_hang} times"
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
    troubles = {0: "busy", 2: "cut", 4: "broken", 7: "half", 9: "busy"}
    said: list[str] = []
    with Server(words_distribution, port=port, troubles=troubles, books=books) as server:
        run_transfer(path, tmp_path / "killed", retries=FAST, say=said.append)
        received = server.received
        run_transfer(path, tmp_path / "killed", retries=FAST)
        assert server.received == received, "a finished run asks nothing"
    assert any(f"; {THREADS} of them were under way when a run ended" in line for line in said)
    assert books.replayed >= THREADS * len(kills), "what the kills lost came from the books"
    assert set(books.charged.values()) == {1}, "a request was paid for twice"
    assert len(books.charged) == needed
    for file in sorted((tmp_path / "calm" / FOLDER).glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "killed" / FOLDER / file.name).read_bytes(), file.name
    for file in (tmp_path / "calm" / FOLDER / "trials").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / FOLDER / "trials" / file.name).read_bytes()


def test_the_budget_is_said_and_held_before_anything_is_sent(tmp_path):
    with Server(words_distribution) as server:
        said: list[str] = []
        path = study(tmp_path, served(server.url, k=12, budget=20))
        with pytest.raises(ConfigError, match=r"budget is too small: \d+ requests"):
            run_transfer(path, tmp_path / "out", say=said.append, retries=FAST)
        assert any("EUR" in line and "to send" in line for line in said)
        assert any("the budget pays for pools.n_reference = 0: no arm has the 19" in line for line in said)
        said.clear()
        run_transfer(
            study(tmp_path, served(server.url, k=12)), tmp_path / "out", say=said.append, estimate_only=True
        )
        assert server.received == 0
        (line,) = [line for line in said if "such studies show changes" in line]
        assert re.search(
            r"with 19 reference pools .* from: person [\d.]+, time [\d.]+; spreads as on the zoo", line
        )


def looked(folder: Path, url: str, futility: float) -> Path:
    """The study with a look at 19 of 39 reference pools, at a level of which each can show something."""
    path = study(folder, served(url, k=12))
    text = path.read_text().replace("n_reference = 19", "n_reference = 39")
    path.write_text(f"{text}level = 0.85\nlooks = [19]\nfutility = {futility}\n", encoding="utf-8")
    return path


def test_an_arm_that_is_decided_is_asked_no_further(tmp_path):
    """Ended at the first look or not, a rerun asks nothing, effects follow from the trials, and requests are counted as sent."""
    with Server(words_distribution) as server:
        for futility, reached in ((0.001, 19), (1.0, 39)):
            said: list[str] = []
            out = tmp_path / str(reached)
            path = looked(tmp_path, server.url, futility)
            run_transfer(path, out, say=said.append, retries=FAST)
            assert any("if every arm is decided at the first look:" in line for line in said)
            assert any("shared: decided after 19 of 39 reference pools" in line for line in said) == (
                reached == 19
            )
            rows = read_transfer(out)["transfer_effects"].to_pylist()
            tested = [r for r in rows if r["arm"] == "shared" and r["contrast"] == "logodds"]
            assert tested
            assert {r["n_reference"] for r in tested} == {reached}
            ended = {r["note"] for r in tested}
            assert ended == (
                {"ended after 19 of 39 reference pools; p and interval hold at every look"}
                if reached == 19
                else {None}
            )
            assert all(r["p"] is not None and r["p_adj"] >= 1 / 40 for r in tested)
            (row,) = read_transfer(out)["transfer_targets"].to_pylist()
            pools = {
                r["pool"] for r in read_transfer(out)["transfer_trials"].to_pylist() if r["arm"] == "shared"
            }
            assert min(pools) == -reached
            received, said = server.received, []
            run_transfer(path, out, say=said.append, retries=FAST, estimate_only=True)
            assert any("spreads of answers kept here" in line for line in said)
            run_transfer(path, out, say=said.append, retries=FAST)
            assert server.received == received
            assert verify_run(out) == []
            asked = len({json.dumps(body, sort_keys=True) for body in server.bodies if "prompt" in body})
            assert row["n_prompts"] <= asked + 4 * 2  # repeats of baselines are prompts of their own
    assert len(list((tmp_path / "19" / FOLDER / "trials").iterdir())) < len(
        list((tmp_path / "39" / FOLDER / "trials").iterdir())
    )


def test_looks_that_can_show_nothing_are_refused(tmp_path):
    path = study(tmp_path, LOCAL)
    for looks, why in (("[19]", "end below pools.n_reference"), ("[50, 40]", "must rise")):
        path.write_text(STUDY.format(targets=LOCAL, k=10) + f"looks = {looks}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=why):
            load_transfer(path)
    text = STUDY.format(targets=LOCAL, k=10).replace("n_reference = 19", "n_reference = 199")
    path.write_text(text + "looks = [49, 199]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must rise"):
        load_transfer(path)
    path.write_text(text + "looks = [49]\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"look at 49 reference pools cannot show anything: it may spend 0\.25 of the level"
    ):
        load_transfer(path)
    path.write_text(text + "looks = [99]\n", encoding="utf-8")
    assert load_transfer(path).test.looks == (99,)


def test_top_30_is_not_told_from_20(tmp_path):
    with Server(words_distribution) as server:
        path = study(tmp_path, served(server.url, k=12), k=30)
        run_transfer(path, tmp_path / "out", retries=FAST)
    rows = read_transfer(tmp_path / "out")["transfer_effects"].to_pylist()
    told = [r for r in rows if r["contrast"] == "success"]
    assert told
    for row in told:
        assert row["estimate"] is None
        assert row["note"] == "not told: the target grants fewer than 30 log-probabilities"


def test_another_study_is_not_overwritten_and_a_changed_table_is_noticed(white_box, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(
        STUDY.format(targets=LOCAL, k=10).replace('name = "zoo"', 'name = "other"'), encoding="utf-8"
    )
    with pytest.raises(StoreError, match="holds the transfer study 'zoo'"):
        run_transfer(other, white_box[0])
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        read_transfer(tmp_path)
