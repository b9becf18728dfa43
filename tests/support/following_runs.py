"""Hints in the middle of a run, raised and followed (`support.following`): on one tiny study and one tiny transfer study.

Both are made once, of a random model in a folder and dictionaries of random rows: what is asked here is whether a hint
leads on, not what the numbers say.
"""

import json
import re
import shlex
import shutil
import tempfile
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from polysem import pairs as pairing
from polysem.act.mlp import mlp_writes
from polysem.cli.app import app
from polysem.config import JointConfig, PairsConfig, TranscoderConfig, parse_study
from polysem.corpus import TokenRows
from polysem.engine import guard as guarding
from polysem.engine import make_beside, run_study, run_transfer
from polysem.engine.atlas import _sets
from polysem.engine.context import StudyContext, given_transcoders
from polysem.engine.guard import ConceptConfig
from polysem.engine.joint import JointOptions
from polysem.engine.layers import _check, _groups
from polysem.engine.side_effects import SideEffectsOptions
from polysem.engine.task import How, Task
from polysem.explore.book import Book
from polysem.explore.export import export_static
from polysem.explore.query import Sql
from polysem.features.best import HarvestPlan
from polysem.features.encoder import ActiveEncoder
from polysem.features.harvest import harvest
from polysem.geometry.unit import unit_rows
from polysem.hierarchy.firing import fired
from polysem.joint.planner import LinearPlan, least_kl
from polysem.joint.run import joint_rows
from polysem.models import load_model
from polysem.report.html import write_page
from polysem.saes.base import SAE
from polysem.saes.transcoders import load_transcoders
from polysem.side_effects.directions import Direction
from polysem.side_effects.push import push
from polysem.side_effects.scene import Scene
from polysem.store.manifest import other_format, read_manifest
from polysem.store.run import RunFolder
from polysem.targets.tokenizer import known_tokenizer
from polysem.transfer.audit import judge_defences
from polysem.transfer.config import TransferStudy, load_transfer, parse_transfer
from polysem.transfer.cost import held_out
from polysem.transfer.directions import find_triples
from polysem.transfer.pools import make_pools, universe
from polysem.transfer.prepare import PreparedTransfer, prepare
from polysem.transfer.run import open_target
from polysem.transfer.source import matched_rows, see
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model
from support import sae_fixtures, transcoder_fixtures
from support.following import PLANTED, Following, World, followed
from support.tiny import save_tiny_model

SAE_ENTRY = """
[[saes]]
ref = "{name}"
label = "{name}"
max_fvu = 1e9
allow_other_model = true
"""
STUDY = f"""
name = "tiny"
[model]
ref = "model"
{SAE_ENTRY.format(name="early")}
{SAE_ENTRY.format(name="late")}
[corpus]
ref = "text.txt"
n_tokens = 2000
context = 40
[glosses]
source = "tokens"
[prompts]
source = "corpus"
n = 6
length = 8
[plan]
n_targets = 2
sources_per_bin = 1
n_random = 1
doses = [0.01]
loci = ["feature"]
"""
TRANSFER = """
name = "tiny"
[[sources]]
model = "model"
sae = "early"
max_fvu = 1e9
[[sources]]
model = "model"
sae = "early"
max_fvu = 1e9
[[targets]]
name = "here"
model = "model"
sae = "near"
max_fvu = 1e9
[corpus]
ref = "text.txt"
n_tokens = 1500
[shared]
min_active = 3
min_r = 0.3
[categories]
names = ["a", "b"]
table = "words.toml"
sentences = "sentences.toml"
purpose = "the words that a tiny vocabulary has"
n_sentences = 2
[pools]
arms = ["target", "random"]
n_tokens = 2
size = 4
n_random = 3
[frames]
repeats = 2
[directions]
kinds = ["feature"]
n_sentences = 1
[cost]
n_texts = 2
n_prefixes = 1
"""
SERVED = '[[targets]]\nname = "there"\nkind = "chat"\nurl = "http://127.0.0.1:9/v1"\nmodel = "m"\nmax_requests = 1\n'
UNNAMED = {"model_name": None}
SIZE = {"n_layers": 2, "vocab": 200, "n_positions": 512}


@cache
def project() -> Path:
    """Model, dictionaries, text and the two studies in a folder, and the study's run in `run`."""
    folder = Path(tempfile.mkdtemp(prefix="following-")) / "a project"
    save_tiny_model("gpt2", folder / "model", **SIZE)
    model, rng = tiny_model("gpt2", **SIZE), np.random.default_rng(0)
    lines = [model.detokenize(rng.integers(4, model.spec.d_vocab, 400).tolist()) for _ in range(24)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    for name, layer in (("early", 0), ("late", 1)):
        _sae(folder / name, layer=layer, metadata=UNNAMED)
    near = sae_fixtures.planted(d_in=model.spec.d_model, k=4)
    noise = torch.randn(near.W_enc.shape, generator=torch.Generator().manual_seed(5))
    near = replace(near, W_enc=near.W_enc + 0.05 * noise)
    sae_fixtures.write_saelens_v6(folder / "near", near, architecture="topk", metadata=UNNAMED)
    words = sorted(
        {t.strip() for t in model.token_strings(range(4, model.spec.d_vocab)) if len(t) > 3 and t[0] == " "}
    )
    (folder / "words.toml").write_text(f"a = {json.dumps(words[:6])}\nb = {json.dumps(words[6:12])}\n")
    (folder / "sentences.toml").write_text('a = ["the sea is", "he was"]\nb = ["the king is", "it was"]\n')
    (folder / "study.toml").write_text(STUDY)
    (folder / "transfer.toml").write_text(TRANSFER)
    run_study(folder / "study.toml", folder / "run", stages=("features", "pairs", "plan", "trials"))
    return folder


def _sae(folder: Path, *, layer: int = 0, d_sae: int = 64, **settings: Any) -> Path:
    weights = sae_fixtures.planted(d_in=16, d_sae=d_sae, layer=layer, hook="hook_resid_post", k=4)
    return sae_fixtures.write_saelens_v6(folder, weights, architecture="topk", **settings)


def refused(do: Following, file: str, *arguments: object) -> str:
    """The hint with which a command ends."""
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    assert ended.exit_code in (1, 2), ended.output
    hint = ended.stderr.partition("next: ")[2].strip()
    do.seen.append(({file}, hint))
    return hint


def scene_of(prompts: Any = None, features: Any = None) -> Scene:
    """The scene of the early dictionary in the tiny run."""
    context, run = _context(), RunFolder.open(project() / "run")
    return Scene.of(
        context.model, context.saes["early"], context.features.features if features is None else features,
        run.table("prompts") if prompts is None else prompts, label="early",
    )  # fmt: skip


def with_parts(context: StudyContext, **parts: Any) -> StudyContext:
    """The same with other SAEs or features."""
    other = copy(context)
    vars(other).update(parts)
    return other


@cache
def _context() -> StudyContext:
    run = RunFolder.open(project() / "run")
    return StudyContext(run.study(), run)


# Verbs of their own ----------------------------------------------------------------------------------------------------


@followed(
    "cli/relations.py: add --model MODEL",
    "cli/scaling.py: add --model MODEL",
    "cli/train_sae.py: add --select batchtopk",
)
def verbs(do: Following) -> None:
    folder = project()
    text, model = folder / "text.txt", folder / "model"
    unnamed = [_sae(do.folder / f"w{n}", d_sae=n, metadata=UNNAMED) for n in (16, 32, 64)]
    asked = ("relations", unnamed[0], "--corpus", text, "--tokens", 1000, "--context", 40, "--probes", 1)
    assert refused(do, "cli/relations.py", *asked) == "add --model MODEL"
    do.command(*map(str, asked), "--model", str(model))
    asked = ("scaling", *unnamed, "--corpus", text, "--tokens", 1000, "--context", 40)
    assert refused(do, "cli/scaling.py", *asked) == "add --model MODEL"
    do.command(*map(str, asked), "--model", str(model))
    other = _sae(do.folder / "other", layer=1, d_sae=32)
    asked = (
        "scaling",
        unnamed[0],
        other,
        unnamed[2],
        "--corpus",
        text,
        "--tokens",
        1000,
        "--context",
        40,
        "--model",
        model,
    )
    assert "give dictionaries of blocks.0.hook_resid_post" in refused(do, "cli/scaling.py", *asked)
    asked = (
        "train-sae", model, "--site", "blocks.0.mlp.hook_in", "--writes", "blocks.0.hook_mlp_out", "--corpus", text,
        "--out", do.folder / "trained", "--tokens", 1200, "--context", 8, "--latents", 32, "--k", 4, "--batch", 256,
        "--epochs", 0.5, "--dtype", "float32",
    )  # fmt: skip
    added = refused(do, "cli/train_sae.py", *asked).removeprefix("add ").partition(":")[0]
    do.command(*map(str, asked), *added.split())
    assert load_transcoders(do.folder / "trained").layers


@followed(
    "engine/run.py: give --shard, or --workers or --engine, not both",
    "explore/export.py: polysem run X/study.toml --out X",
    "store/manifest.py: polysem run X/study.toml --out X",
    "boundary/runs.py: give the file, and the folder as --out: X --out X",
    "explore/book.py: if the study is running, try again in a moment; otherwise polysem verify RUN",
)
def folders_of_runs(do: Following) -> None:
    folder = project()
    study = folder / "study.toml"
    both = lambda: run_study(study, folder / "run", stages=("trials",), shard=(1, 1), workers=2)  # noqa: E731
    assert "not both" in do.hint(both)
    run_study(study, folder / "run", stages=("trials",), shard=(1, 1))
    fresh = do.folder / "fresh"
    run = RunFolder(fresh)
    with run.writing():
        run.claim(parse_study(STUDY), STUDY, base=folder)
    asked = do.hint(lambda: export_static(Book(fresh), do.folder / "export"))
    do.command(*shlex.split(asked)[1:])
    assert (export_static(Book(fresh), do.folder / "export") / "index.html").is_file()
    for manifest in fresh.glob("*/manifest.json"):
        manifest.write_text(re.sub(r'"format": \d+', '"format": 1', manifest.read_text()))
    error = other_format(fresh)
    assert error is not None
    again = error.hint or ""
    do.seen.append(({"store/manifest.py"}, again))
    do.command(*shlex.split(again)[1:])
    assert other_format(fresh) is None
    named = refused(do, "boundary/runs.py", "report", fresh)
    do.command("report", *shlex.split(named.partition(": ")[2]))
    book = Book(fresh)
    damaged = fresh / "plan" / "plan.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:4] + bytes(len(whole) - 8) + whole[-4:])
    assert "polysem verify RUN" in do.hint(
        lambda: book.ask(Sql("SELECT * FROM read_parquet(?)", [str(damaged)]))
    )
    told = CliRunner().invoke(app, ["verify", str(fresh), "--sample", "0"])
    assert told.exit_code == 1
    assert "plan/plan.parquet" in told.output


@followed(
    "engine/run.py: add a line [X] to the study; what it may hold: polysem init",
    "plan/layout.py: polysem kinship STUDY.toml",
)
def relations_of_a_study(do: Following) -> None:
    folder, stages = project(), ("features", "pairs", "kinship")
    text = (folder / "study.toml").read_text()
    study = folder / "kin.toml"
    study.write_text(text)
    said = do.hint(lambda: run_study(study, do.folder / "run", stages=stages))
    study.write_text(
        f"{text}\n{said.removeprefix('add a line ').partition(' to the study')[0]}\nn_tokens = 1000\n"
    )
    run_study(study, do.folder / "run", stages=("features", "pairs"))
    world, asked = World(), parse_study(PLANTED + "[relations]\n")
    assert do.hint(lambda: world.planned(asked)).startswith("polysem kinship STUDY.toml")
    do.command("kinship", str(study), "--out", str(do.folder / "run"))
    assert world.planned(asked, relations=RunFolder.open(do.folder / "run").table("relations"))


# What stages say -------------------------------------------------------------------------------------------------------


@followed(
    "engine/atlas.py: polysem features STUDY.toml, or the other token set",
    "engine/cache.py: name labels of [[saes]]",
    "engine/context.py: edit layers in [[transcoders]]",
    "engine/layers.py: add a dictionary of the residual stream of a later layer to [[saes]]",
    "engine/layers.py: give the transcoders a label of their own: label in [[transcoders]]",
    "engine/side_effects.py: leave --site out",
    "engine/guard.py: set sae in the concept file",
    "side_effects/push.py: give the site that the vector is of: --site",
    "side_effects/scene.py: raise prompts.n in the study",
    "side_effects/scene.py: polysem features STUDY.toml",
)
def stages(do: Following) -> None:
    folder, context = project(), _context()
    model, saes, table = context.model, context.saes, context.features.features
    at = table.column_names.index("tokens_out")
    nothing = table.set_column(at, table.field(at), pa.array([[]] * len(table), table.field(at).type))
    half = with_parts(context, features=SimpleNamespace(features=nothing))
    assert "other token set" in do.hint(lambda: _sets(half, "early", model, "out"))
    assert _sets(half, "early", model, "in")
    assert _sets(context, "early", model, "out")  # pyright: ignore[reportArgumentType]
    assert "polysem features" in do.hint(lambda: scene_of(features=nothing))
    prompts = RunFolder.open(folder / "run").table("prompts")
    assert "raise prompts.n" in do.hint(lambda: scene_of(prompts=prompts.slice(0, 1)))
    assert scene_of().prompts

    alone = with_parts(context, saes={"late": saes["late"]})

    def writing(of: StudyContext) -> list[Any]:
        return [one for group in _groups(of, list(of.saes)) for one in group]

    assert "[[saes]]" in do.hint(lambda: _check(writing(alone)))
    both = writing(context)
    _check(both)
    assert "label in [[transcoders]]" in do.hint(lambda: _check([*both, both[0]]))
    _check([*both, replace(both[0], label="another")])
    odd = TranscoderConfig(ref="zoo:gpt2/plt", layers=(9,))
    assert "edit layers" in do.hint(lambda: given_transcoders(odd, None))
    assert len(given_transcoders(odd.model_copy(update={"layers": (1,)}), None).layers) == 1
    other = do.folder / "run"
    shutil.copytree(folder / "run", other)
    text = (other / "study.toml").read_text()
    small = "[joint]\npools = 2\npool = 3\nsizes = [2]\ndraws = 2\nsubsets = 8\npairs = 2\nlift_tokens = 0\nplans = 0\n"
    (other / "study.toml").write_text(f'{text}{small}sites = ["nowhere"]\n')
    assert do.hint(lambda: make_beside("joint", other, JointOptions())) == "name labels of [[saes]]"
    (other / "study.toml").write_text(f'{text}{small}sites = ["early"]\n')
    assert make_beside("joint", other, JointOptions()).is_dir()

    asked = SideEffectsOptions(features=(1,), site="blocks.1.hook_resid_post", sae="early")
    assert do.hint(lambda: make_beside("side-effects", other, asked)) == "leave --site out"
    assert make_beside("side-effects", other, replace(asked, site="")).is_dir()
    rng, ids = np.random.default_rng(0), [prompts["token_ids"].to_pylist()[0]]
    wide = rng.standard_normal(model.site_width(Site(0, "mlp.hook_post")))

    def pushed(site: Site) -> object:
        return push(
            model, ids, [Direction("v", "file", site, wide)], sets=[[5, 6]], dose=1.0, unit="coefficient"
        )

    assert "--site" in do.hint(lambda: pushed(Site(0, "hook_resid_post")))
    pushed(Site(0, "mlp.hook_post"))

    early = saes["early"]
    across = replace(early, reads=Site(0, "hook_resid_mid"))
    concept = ConceptConfig(words=" the, of", documents=40, length=8, prompts=4, sae="")
    made = read_manifest(folder / "run", "features")
    assert made is not None
    task = Task(
        "guard", RunFolder(folder / "run"), context.places.settings(context.study),
        with_parts(context, saes={"transcoder": across, "early": early}), made.made_from, How(), concept,
    )  # fmt: skip
    assert do.hint(lambda: guarding._scene(task)) == "set sae in the concept file"
    asked = replace(task, options=concept.model_copy(update={"sae": "early"}))
    assert guarding._scene(asked).sae is early


@followed(
    "joint/planner.py: want less at once, or allow more pushes: joint.candidates",
    "joint/run.py: lower joint.kl in the study",
    "joint/run.py: lower joint.pools or joint.pool in the study",
)
def several_at_once(do: Following) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 3))
    one, all_three = (LinearPlan(rows[:, :n], np.eye(n)) for n in (1, 3))
    both = lambda plan: least_kl(plan, [0, 1], np.ones(2))  # noqa: E731
    assert "joint.candidates" in do.hint(lambda: both(one))
    np.testing.assert_allclose(rows @ both(all_three), 1, rtol=1e-3)
    np.testing.assert_allclose(rows[:1, :1] @ least_kl(one, [0], np.ones(1)), 1, rtol=1e-3)
    scenes = {"early": scene_of()}
    few = JointConfig(pools=2, pool=3, sizes=(2,), draws=2, subsets=8, pairs=2, lift_tokens=0, rotations=1)
    assert "joint.pool " in do.hint(lambda: joint_rows(scenes, few.model_copy(update={"pool": 60})))
    assert "joint.kl" in do.hint(lambda: joint_rows(scenes, few.model_copy(update={"kl": 5.0})))
    assert joint_rows(scenes, few)["joint_pairs"]


@followed(
    "act/mlp.py: leave mlp_neuron out of plan.loci",
    "act/mlp.py: leave mlp_neuron out of plan.loci for this model",
    "hierarchy/firing.py: give a longer --corpus",
    "hierarchy/firing.py: load the model with dtype = float32",
    "pairs.py: raise pairs.min_interference",
    "saes/transcoders/load.py: fetch the files of the missing layers",
    "models/gguf.py: use the model's safetensors folder instead: load_model(",
)
def numbers_of_models(do: Following) -> None:
    world = World()
    rows = unit_rows(np.random.default_rng(0).standard_normal((8, 16)))
    sae = plain_sae(rows, site=Site(0, "hook_mlp_out"))
    without_it = parse_study(PLANTED.replace("n_targets", 'loci = ["feature"]\nn_targets'))
    lacking = copy(tiny_model("gpt2"))
    lacking.sites = lambda: ()
    assert do.hint(lambda: mlp_writes(lacking, sae)) == "leave mlp_neuron out of plan.loci"
    assert "for this model" in do.hint(lambda: mlp_writes(tiny_model("gemma2"), sae))
    assert world.planned(without_it).plan.num_rows
    assert mlp_writes(tiny_model("gpt2"), sae).shape == (48, 16)

    x = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    assert do.hint(lambda: fired(sae, x[:0])) == "give a longer --corpus"
    assert "float32" in do.hint(lambda: fired(sae, np.where(x > 2, np.inf, x)))
    assert fired(sae, x).n == 20
    encode = ActiveEncoder(sae)
    given = torch.from_numpy(x)
    assert "check the activations" in do.hint(lambda: encode(torch.where(given > 2, torch.nan, given)))
    assert encode(given)
    stream = plain_sae(rows, site=Site(0, "hook_resid_post"))
    damaged = replace(stream, W_enc=stream.W_enc * 3e38)
    tokens = np.random.default_rng(2).integers(2, 48, (4, 12)).astype(np.int32)
    text = TokenRows(tokens, ("text",), np.zeros(1, np.int64), 1)

    def harvested(one: SAE) -> object:
        return harvest(tiny_model("gpt2"), {"a": one}, text, plan=HarvestPlan(2, 5, 4))

    assert "fetch the files of the SAE" in do.hint(lambda: harvested(damaged))
    assert harvested(stream)

    context = _context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "MOST_PAIRS", 40)

        def mapped(least: float) -> object:
            config = PairsConfig(min_interference=least)
            return pairing.map_pairs(
                context.saes["early"], context.features, config=config, label="early"
            ).tables()

        assert do.hint(lambda: mapped(0.01)) == "raise pairs.min_interference"
        assert mapped(0.95)

    import gguf

    writer = gguf.GGUFWriter(do.folder / "m.gguf", "mamba")
    writer.add_tensor("a", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "safetensors folder" in do.hint(lambda: load_model(str(do.folder / "m.gguf")))
    assert load_model(str(project() / "model")).spec.n_layers

    model, whole = tiny_model("gpt2", n_layers=3), transcoder_fixtures.planted(d=16)
    folder = transcoder_fixtures.circuit_tracer_plt(do.folder / "layers", whole)
    (folder / "layer_2.safetensors").rename(do.folder / "fetched")

    def load() -> object:
        return load_transcoders(folder, model=model, max_fvu=1e9, allow_other_model=True).layers

    assert "missing layers" in do.hint(load)
    (do.folder / "fetched").rename(folder / "layer_2.safetensors")
    assert load()


# Transfer --------------------------------------------------------------------------------------------------------------


@cache
def _prepared() -> tuple[TransferStudy, PreparedTransfer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project())
        study = load_transfer(project() / "transfer.toml")
        return study, prepare(study)


def changed(study: TransferStudy, section: str, **values: object) -> TransferStudy:
    part = getattr(study, section).model_copy(update=values)
    return study.model_copy(update={section: part})


@followed(
    'transfer/audit.py: add a target with kind = "local"',
    "transfer/audit.py: lower --n-clean or corpus.n_tokens, or name another cost.corpus",
    "transfer/cost.py: name another cost.corpus, or lower corpus.n_tokens or cost.n_texts",
    "transfer/directions.py: lower shared.min_r, read a longer corpus, or leave the target's sae out",
    "transfer/pools.py: lower pools.size, or take sources with a larger vocabulary",
    "transfer/prepare.py: lower pools.n_tokens, shared.min_z or shared.min_r, or read a longer corpus",
    "targets/tokenizer.py: leave targets.tokenizer out",
)
def transfers(do: Following) -> None:
    folder = project()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study, prepared = _prepared()
        large = changed(study, "pools", n_tokens=1000, size=1000)
        assert "pools.n_tokens" in do.hint(lambda: prepare(large))
        assert prepared.pools
        of_another = _sae(do.folder / "another", metadata={"model_name": "gpt2-large"})

        def sources(**more: object) -> TransferStudy:
            named = tuple(s.model_copy(update={"sae": str(of_another), **more}) for s in study.sources)
            return study.model_copy(update={"sources": named})

        assert "allow_other_model = true" in do.hint(lambda: prepare(sources()))
        assert prepare(sources(allow_other_model=True)).pools
        kept = do.folder / "kept"
        text = f"{TRANSFER.partition('[[targets]]')[0]}{SERVED}[corpus]{TRANSFER.partition('[corpus]')[2]}"
        away = parse_transfer(text)
        say = lambda _: None  # noqa: E731
        assert 'kind = "local"' in do.hint(lambda: judge_defences(away, kept, say=say))
        both = away.model_copy(update={"targets": (*away.targets, *study.targets)})
        assert judge_defences(both, kept, n_clean=20, say=say)["defences"].num_rows
        assert "--n-clean" in do.hint(lambda: judge_defences(study, kept, n_clean=10**5, say=say))
        many = replace(prepared, study=changed(study, "cost", n_texts=10**4))
        assert "cost.n_texts" in do.hint(lambda: held_out(many))
        assert len(held_out(prepared)) == 2
        target: Any = open_target(study.targets[0], kept)
        from polysem.saes import load_sae

        seen = see(target.model, load_sae("near"), matched_rows(study), name="here")
        strict = replace(prepared, study=changed(study, "shared", min_r=1.0))
        assert "shared.min_r" in do.hint(lambda: find_triples(strict, seen))
        assert len(find_triples(prepared, seen).feature)
        strings = [" sea", " king", " man", " ship", " door", " city", " road", " rain"]
        among = universe(
            strings, frequency=dict.fromkeys(strings, 1), leakage=np.zeros(8), count_tokens=lambda _: 1
        )

        def pools(size: int) -> object:
            return make_pools(
                "shared", "a", strings[:6], among=among, barred=frozenset(), size=size, n_treated=1, n_reference=19,
                nearest=2, seed=0,
            )  # fmt: skip

        assert "pools.size" in do.hint(lambda: pools(4))
        assert pools(1)
    text = f'{TRANSFER}\n{SERVED}tokenizer = "{do.folder / "none"}"\n'
    served = parse_transfer(text).targets[1]
    assert "leave targets.tokenizer out" in do.hint(lambda: known_tokenizer(str(served.tokenizer)))
    assert open_target(served.model_copy(update={"tokenizer": None}), do.folder)
    out = do.folder / "out"
    run_transfer(folder / "transfer.toml", out, say=lambda _: None)
    command = do.hint(lambda: write_page(out, "defend"))
    assert command == f"polysem defend '{out}'"
    do.command(*shlex.split(command)[1:], "--n-clean", "20")
    assert write_page(out, "defend").is_file()
