"""Hints of options, commands, files, models and servers, raised and followed (`support.following`)."""

import json
import re
import subprocess
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from polysem.act.base import Recipe
from polysem.act.gradient import token_gradient
from polysem.act.mlp import mlp_writes
from polysem.cli.app import app
from polysem.config import SAEConfig, parse_study
from polysem.engine.check import _disk, _thresholds
from polysem.engine.generate import GenerateOptions
from polysem.engine.guard import load_concept
from polysem.engine.joint import JointOptions
from polysem.engine.making import DefendOptions
from polysem.engine.run import _read, _wanted
from polysem.engine.side_effects import SideEffectsOptions
from polysem.explore.server import hosts_of, listen, root_of
from polysem.geometry.mine import mine_pairs
from polysem.keys import Keyring
from polysem.layers.ends import Ends
from polysem.models.hf import HFModel
from polysem.models.load import load_model
from polysem.pairs import _Side
from polysem.paper.selection import select
from polysem.positions import PLAIN
from polysem.registry import zoo_path
from polysem.saes import load_sae
from polysem.saes.fidelity import measure
from polysem.saes.names import site_of_module
from polysem.saes.transcoders.load import load_transcoders
from polysem.side_effects.directions import difference_of_means, read_direction
from polysem.side_effects.repair import least_collateral
from polysem.stats.arms import both_signs
from polysem.stats.units import pool_test
from polysem.store.lock import locked
from polysem.store.run import RunFolder
from polysem.store.tables import CONTEXTS, GLOSSES
from polysem.targets.base import Answer, TargetPrompt
from polysem.targets.bounds import top_k_counts
from polysem.targets.parse import parse_answer, parse_samples
from polysem.targets.spelling import reader_of_tokens
from polysem.training.harvest import StoredActivations, harvest, part_file
from polysem.training.run import Split, restore, save
from polysem.transfer.ask import frame
from polysem.transfer.categories import Coverage, check_coverage
from polysem.transfer.config import load_transfer, parse_transfer
from polysem.transfer.explainer import ExplainedContext, explain
from polysem.transfer.panel import load_panel
from polysem.transfer.pools import Universe, _draw
from polysem.types import Site
from polysem.worlds.tiny import tiny_model
from support import foreign, sae_fixtures, transcoder_fixtures
from support.following import PLANTED, STREAM, Following, World, followed
from support.planted import LABEL
from support.tiny import save_tiny_model

# Words of the command line ---------------------------------------------------------------------------------------------


@followed(
    "engine/options.py: --towards",
    "engine/making.py: raise --n-clean",
    "engine/run.py: polysem trials STUDY.toml --shard 1/8",
    "engine/options.py: give --more FILE and --less FILE",
    "engine/options.py: give --features",
    "side_effects/directions.py: polysem side-effects",
    "side_effects/directions.py: leave --site out",
    "side_effects/directions.py: give one of them as --site",
    "training/run.py: raise --tokens",
    "explore/server.py: polysem explore RUN --allow-host",
    "explore/server.py: polysem explore RUN --root-path",
    "explore/server.py: choose another --port",
)
def options(do: Following) -> None:
    for towards in (("happy",), ("happy=0",)):
        words = do.hint(JointOptions(towards=towards).check).removeprefix("--towards ")
        JointOptions(towards=(words,)).check()
    assert do.hint(JointOptions(protect=("sea",)).check) == f"--towards {words}"
    assert do.hint(DefendOptions(n_clean=1).check) == "raise --n-clean"
    DefendOptions().check()
    part, parts = map(int, do.hint(lambda: _wanted(None, (1, 8))).partition("--shard ")[2].split("/"))
    assert _wanted(("trials",), (part, parts)) == ("trials",)
    assert "--less" in do.hint(SideEffectsOptions(more="m").check)
    SideEffectsOptions(more="m", less="n").check()
    assert "--features 12,40" in do.hint(SideEffectsOptions().check)
    SideEffectsOptions(features=(12, 40)).check()
    model = tiny_model("gpt2")

    def means(*texts: str) -> object:
        return difference_of_means(model, texts, ["a king came", "a ship came"], site=STREAM, positions=PLAIN)

    assert "--more MORE.txt" in do.hint(lambda: means("the sea"))
    means("the sea is", "the sea was")
    file, several = do.folder / "v.safetensors", do.folder / "w.safetensors"
    from polysem.store import io

    io.write_arrays(file, {str(STREAM): np.ones(4)})
    io.write_arrays(several, {str(STREAM): np.ones(4), "blocks.0.hook_resid_post": np.ones(4)})
    assert "leave --site out" in do.hint(lambda: read_direction(file, site=Site(0, "hook_resid_post")))
    assert read_direction(file)[0] == STREAM
    assert "--site" in do.hint(lambda: read_direction(several))
    assert read_direction(several, site=STREAM)[0] == STREAM
    assert (
        do.hint(lambda: Split(StoredActivations(do.folder, 1, {}), STREAM, STREAM).held_out)
        == "raise --tokens"
    )  # pyright: ignore[reportArgumentType]
    assert Split(StoredActivations(do.folder, 2, {}), STREAM, STREAM).held_out == [1]  # pyright: ignore[reportArgumentType]
    host = do.hint(lambda: hosts_of("127.0.0.1", 1, more=["http://x"])).partition("--allow-host ")[2]
    assert host in hosts_of("127.0.0.1", 1, more=[host])
    path = do.hint(lambda: root_of("/a b", 9)).partition("--root-path ")[2].strip("'")
    assert root_of(path, 9) == "/user/me/proxy/9"
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    assert do.hint(lambda: listen("127.0.0.1", port)) == "choose another --port"
    listen("127.0.0.1", 0).close()
    taken.close()


@followed(
    "transfer/config.py: polysem transfer --init",
    "engine/run.py: polysem init > study.toml",
    "engine/run.py: polysem transfer --init",
    "cli/beside.py: polysem transfer --init",
    "cli/beside.py: polysem X --init",
    "transfer/panel.py: polysem judge --init",
    "store/run.py: polysem run STUDY.toml --out X",
    "boundary/runs.py: polysem run STUDY.toml --out X",
    "store/run.py: choose another --out",
    "replicate.py: polysem zoo",
    "replicate.py: polysem replicate",
    "cli/beside.py: polysem guard --init",
    "engine/guard.py: polysem guard --init",
    "engine/options.py: --kl 0.05,0.5",
)
def commands(do: Following) -> None:
    from polysem.replicate import replicate
    from polysem.report.source import Run

    for what, parse, words in (
        ("study", parse_study, ("init",)),
        ("transfer study", parse_transfer, ("transfer", "--init")),
    ):
        file = do.folder / f"{what}.toml"
        assert f"polysem {' '.join(words)} >" in do.hint(lambda w=what, p=parse, f=file: _read(f, p, w))
        file.write_text(do.command(*words))
        assert _read(file, parse, what)
    for verb, read in (("transfer", load_transfer), ("judge", load_panel), ("guard", load_concept)):
        file = do.folder / f"{verb}.toml"
        assert f"polysem {verb} --init >" in do.hint(lambda read=read, file=file: read(file))
        file.write_text(do.command(verb, "--init"))
        assert read(file)
    for verb, name in (("transfer", "transfer"), ("judge", "judges"), ("guard", "concept")):
        ended = CliRunner().invoke(app, [verb])
        assert f"polysem {verb} --init >" in f"{ended.output}{ended.exception and ended.exception}"
        do.seen.append(({"cli/beside.py"}, f"polysem {verb} --init > {name}.toml"))
    assert do.hint(GenerateOptions(kl=(9.0,)).check) == "--kl 0.05,0.5"
    GenerateOptions(kl=(0.05, 0.5)).check()
    empty = do.folder / "run"
    empty.mkdir()
    for call in (lambda: RunFolder.open(empty), lambda: Run.open(empty)):
        assert do.hint(call) == f"polysem run STUDY.toml --out '{empty}'"
    (empty / "study.toml").write_text('name = "another"' + PLANTED)
    assert RunFolder.open(empty).study()
    study = parse_study(PLANTED)
    assert "--force" in do.hint(lambda: RunFolder(empty).claim(study, PLANTED, base=do.folder))
    RunFolder(do.folder / "other").claim(study, PLANTED, base=do.folder)
    RunFolder(empty).claim(study, PLANTED, base=do.folder, force=True)
    one = load_sae(
        {"W_enc": np.eye(4, 8), "W_dec": np.eye(8, 4), "b_enc": np.zeros(8), "b_dec": np.zeros(4)},
        site=str(STREAM),
    )
    refs = do.hint(lambda: replicate([one])).split()[2:]
    assert len(refs) == 2
    assert "polysem zoo" in do.hint(lambda: replicate([one, one.at(Site(0, "hook_resid_post"))]))
    assert refs[0].removeprefix("zoo:") in do.command("zoo")
    assert replicate([load_sae(ref) for ref in refs])


# Files -----------------------------------------------------------------------------------------------------------------


@followed(
    "keys.py: chmod 600 X",
    "store/lock.py: rm -r X",
    "store/lock.py: choose another --out",
    "store/run.py: choose another --out",
)
def shells(do: Following) -> None:
    keys = do.folder / "keys.toml"
    keys.write_text('"https://host.example/v1" = "k"\n')
    keys.chmod(0o644)
    ring = lambda: Keyring.of({"POLYSEM_KEYS": str(keys)}).key("https://host.example/v1")  # noqa: E731
    subprocess.run(do.hint(ring), shell=True, check=True)
    assert ring()
    (do.folder / ".lock").mkdir()

    def lock() -> None:
        with locked(do.folder):
            pass

    subprocess.run(do.hint(lock), shell=True, check=True)
    lock()
    (do.folder / "file").write_text("x")

    def write() -> None:
        with RunFolder(do.folder / "file" / "run").writing():
            pass

    assert "another --out" in do.hint(write)
    do.seen.append(({"store/lock.py"}, "choose another --out, on another file system"))


@followed(
    "saes/parts.py: name the site: load_sae(",
    "saes/names.py: name the site yourself",
    "saes/base.py: sae.decode(acts, like=x)",
    "saes/load.py: load_model(X); or",
    "saes/dialects/saelens.py: polysem.saes.load_transcoders(folder)",
    "saes/dialects/gemma_scope.py: polysem.saes.load_transcoders(folder)",
    "saes/transcoders/saelens.py: an autoencoder is read by load_sae(",
    "saes/transcoders/sparsify.py: load_sae(X)",
    "saes/transcoders/sparsify.py: mv X layers.5.mlp",
    "saes/transcoders/gemma.py: mv X layer_12",
    "saes/transcoders/decode_clt.py: copy model.safetensors",
    "saes/transcoders/decode_clt.py: set decoder_tying to what the run had: none",
    "saes/transcoders/decode_clt.py: set normalization_method to how the run scaled its activations: none",
)
def dictionaries(do: Following) -> None:
    weights = {"W_enc": np.eye(4, 8), "W_dec": np.eye(8, 4), "b_enc": np.zeros(8), "b_dec": np.zeros(4)}
    site = re.findall(r'site="([^"]+)"', do.hint(lambda: load_sae(weights)))[0]
    lone = sae_fixtures.write_dictionary_learning(do.folder / "d", sae_fixtures.planted()) / "ae.pt"
    lone.with_name("config.json").unlink()
    assert load_sae(str(lone), site=re.findall(r'site="([^"]+)"', do.hint(lambda: load_sae(str(lone))))[0])
    assert str(load_sae(weights, site=site).reads) == site
    named = do.hint(lambda: site_of_module("layers.5.nothing", model_id=None))
    assert load_sae(weights, site=re.findall(r'site = "([^"]+)"', named)[0])
    folder = sae_fixtures.write_saelens_v6(do.folder / "s", sae_fixtures.planted())
    hint = do.hint(lambda: load_transcoders(folder))
    assert str(folder) in hint
    assert load_sae(str(folder))
    normal = sae_fixtures.write_openai_v5_pre_v6(do.folder / "n", sae_fixtures.planted())
    sae, x = load_sae(str(normal)), sae_fixtures.inputs(sae_fixtures.planted())
    assert do.hint(lambda: sae.decode(sae.encode(x))) == "sae.decode(acts, like=x)"
    assert sae.decode(sae.encode(x), like=x).shape == x.shape
    one = transcoder_fixtures.saelens(do.folder / "t", transcoder_fixtures.planted(jump=True))
    assert "load_transcoders(folder)" in do.hint(lambda: load_sae(str(one)))
    assert load_transcoders(one).layers
    gemma = transcoder_fixtures.gemma_scope(
        do.folder / "gemma-transcoders", transcoder_fixtures.planted(jump=True)
    )
    assert "load_transcoders(folder)" in do.hint(lambda: load_sae(str(gemma / "layer_1")))
    assert load_transcoders(gemma / "layer_1").layers
    (gemma / "layer_1").rename(do.folder / "it")
    hint = do.hint(lambda: load_transcoders(do.folder / "it"))
    subprocess.run(hint, shell=True, check=True, cwd=do.folder)
    assert load_transcoders(do.folder / "layer_12").layers
    clt = transcoder_fixtures.decode_clt(do.folder / "c", transcoder_fixtures.planted(cross=True))
    last = (clt / "clt_checkpoint_latest.safetensors").rename(do.folder / "model.safetensors")
    assert "copy model.safetensors" in do.hint(lambda: load_transcoders(clt))
    last.rename(clt / last.name)
    assert load_transcoders(clt).layers
    said = (clt / "cfg.json").read_text()
    for key in ("decoder_tying", "normalization_method"):
        (clt / "cfg.json").write_text(json.dumps(json.loads(said) | {key: "odd"}))
        hint = do.hint(lambda: load_transcoders(clt))
        assert hint.startswith(f"set {key} to ")
        value = re.findall(r": (\w+)", hint)[0]
        (clt / "cfg.json").write_text(json.dumps(json.loads(said) | {key: value}))
        assert load_transcoders(clt).layers
    tensors = load_file(clt / last.name)
    turned = {re.sub(r"(\d)->(\d)", r"\2->\1", name): values.clone() for name, values in tensors.items()}
    save_file(tensors | turned, clt / last.name)
    assert "(0->2)" in do.hint(lambda: load_transcoders(clt))
    save_file(tensors, clt / last.name)
    assert load_transcoders(clt).layers
    auto = sae_fixtures.write_sparsify(do.folder / "p", sae_fixtures.planted())
    assert f"{str(auto)!r}" in do.hint(lambda: load_transcoders(auto))
    assert load_sae(str(auto))
    odd = transcoder_fixtures.sparsify(do.folder / "q", transcoder_fixtures.planted(k=4)) / "layers.1.mlp"
    odd.rename(do.folder / "odd")
    subprocess.run(
        do.hint(lambda: load_transcoders(do.folder / "odd")), shell=True, check=True, cwd=do.folder
    )
    assert load_transcoders(do.folder / "layers.5.mlp").layers
    model = tiny_model("gpt2", d_model=16)
    other = sae_fixtures.write_saelens_v6(do.folder / "o", sae_fixtures.planted(model="somebody/other"))
    fake = copy(model)
    fake.spec = replace(model.spec, ref="openai-community/gpt2")
    from polysem.saes.load import check_match

    hint = do.hint(lambda: check_match(load_sae(str(other)), fake))
    assert "load_model('somebody/other')" in hint
    assert "allow_other_model = true" in hint
    check_match(load_sae(str(other)), fake, compare_ids=False)  # pyright: ignore[reportArgumentType]
    assert SAEConfig(ref="x", allow_other_model=True).allow_other_model


@followed(
    "act/gradient.py: leave the locus gradient out of plan.loci",
    "act/gradient.py: leave the locus gradient out of plan.loci for this SAE",
    "act/mlp.py: leave mlp_neuron out of plan.loci, or name another SAE",
    "models/hf.py: tokenize with prepend_bos=False",
    "models/load.py: use device = 'auto' or 'cpu'",
)
def models(do: Following) -> None:
    world = World()
    context = replace(world.context(), model=world.parts.model)
    recipe = Recipe.of("gradient", feature=0)
    assert "plan.loci" in do.hint(lambda: token_gradient(recipe, context))
    model = tiny_model("gpt2")
    narrow = replace(context, model=model)
    assert "for this SAE" in do.hint(lambda: token_gradient(recipe, narrow))
    assert "plan.loci" in do.hint(lambda: mlp_writes(None, world.parts.sae))
    without_it = parse_study(PLANTED.replace("n_targets", 'loci = ["feature"]\nn_targets'))
    assert world.planned(without_it).plan.num_rows
    assert "model.tokenize" in do.hint(lambda: model.logits(torch.tensor([[10**6]])))
    model.logits(torch.tensor([model.tokenize("the sea", prepend_bos=False)]))
    model.tokenizer.bos_token = None
    without = HFModel.from_parts(model.model, model.tokenizer, ref="without", revision="0")
    assert do.hint(lambda: without.tokenize("the", prepend_bos=True)) == "tokenize with prepend_bos=False"
    assert without.tokenize("the", prepend_bos=False)
    folder = save_tiny_model("gpt2", do.folder / "m")
    assert "'cpu'" in do.hint(lambda: load_model(str(folder), device="cuda:77"))
    assert load_model(str(folder), device="cpu")
    assert "model.sites()" in do.hint(lambda: model.site_width(Site(99, "hook_resid_post")))
    assert model.site_width(model.sites()[0])


# Transfer and targets --------------------------------------------------------------------------------------------------


@followed(
    "targets/bounds.py: lower success_k to X",
    "targets/spelling.py: name the model's tokenizer with target.tokenizer",
    "targets/spelling.py: use kind = 'chat'",
    "transfer/ask.py: set frames.positions",
    "transfer/categories.py: leave these categories out of categories.names",
    "stats/units.py: raise pools.n_reference",
    "targets/local.py: use position = 'prefix'",
    "targets/local.py: shorten the sentence, or lower pools.n_tokens",
)
def transfer(do: Following) -> None:
    from polysem.targets.local import LocalTarget

    answer = Answer((" a", " b"), np.log([0.5, 0.25]), complete=False)
    inside = np.array([[True, False]])
    k = int(re.findall(r"success_k to (\d+)", do.hint(lambda: top_k_counts(answer, inside, k=5)))[0])
    assert len(top_k_counts(answer, inside, k=k)) == 1
    assert "target.tokenizer" in do.hint(lambda: reader_of_tokens("ids", by_id=None, who="t"))
    assert reader_of_tokens("ids", by_id=lambda _: " sea", who="t")("token_id:3") == " sea"
    assert "kind = 'chat'" in do.hint(lambda: reader_of_tokens("stripped", by_id=None, who="t"))
    rows = [Coverage("colors", 3, 0, 0), Coverage("animals", 3, 2, 2)]
    assert "categories.names" in do.hint(lambda: check_coverage(rows, who="t"))
    check_coverage(rows[1:], who="t")
    treated, reference = np.ones((1, 1)), np.random.default_rng(0).normal(size=(1, 199))
    few = do.hint(lambda: pool_test(treated, reference[:, :5], level=0.95, rng=np.random.default_rng(0)))
    n = int(re.findall(r"(\d+) is the usual", few)[0])
    assert pool_test(treated, reference[:, :n], level=0.95, rng=np.random.default_rng(0)).n_reference == n
    target = LocalTarget(tiny_model("gpt2"))
    assert "'prefix'" in do.hint(lambda: target.tokens(TargetPrompt("the", system="s")))
    assert "pools.n_tokens" in do.hint(lambda: target.tokens(TargetPrompt("the sea " * 300)))
    assert target.tokens(TargetPrompt("the sea"))
    framed = lambda position: frame("It is", ["sea"], template="paren", position=position, chat=False)  # noqa: E731
    positions = json.loads(
        do.hint(lambda: framed("system")).partition("frames.positions = ")[2].partition(",")[0]
    )
    assert [framed(position) for position in positions]


# What is left over ---------------------------------------------------------------------------------------------------


@followed(
    "engine/check.py: set pairs.min_interference below X",
    "engine/check.py: choose another --out, or free some space",
    "pairs.py: make the feature table again: polysem features STUDY.toml",
    "geometry/rows.py: check the file the rows were loaded from, or set the row to zeros",
    "layers/ends.py: leave this dictionary out of [[saes]]",
    "side_effects/repair.py: say what it is meant to move: --target",
    "registry.py: polysem zoo",
    "models/objects.py: load_model(model, tokenizer=",
    "saes/objects.py: give its tensors: load_sae(",
    "saes/transcoders/sparsify.py: use a dictionary that was trained with coalesce_topk",
    "training/harvest.py: give another folder (--work), or delete this one",
    "training/harvest.py: rm -r X",
    "training/harvest.py: rm X",
    "training/run.py: delete X to begin anew",
    "targets/parse.py: check target.url and target.kind",
    "targets/parse.py: check target.url; expected",
    "targets/parse.py: serve the model with log-probabilities",
    "targets/parse.py: set target.samples lower",
)
def others(do: Following) -> None:
    world = World()
    study = parse_study(f"{PLANTED}[pairs]\nmin_interference = 0.9\nbins = [0.0, 0.5]\n")
    below = float(re.findall(r"below ([\d.]+)", do.hint(lambda: _thresholds(study, [10**6])))[0])
    _thresholds(
        parse_study(f"{PLANTED}[pairs]\nmin_interference = {below - 0.1}\nbins = [0.0, 0.5]\n"), [10**6]
    )
    assert "another --out" in do.hint(lambda: _disk(study, 10**15, do.folder))
    _disk(study, 10, do.folder)
    vectors = world.parts.embeddings[LABEL]
    for table in (vectors[:1], vectors):
        given = SimpleNamespace(
            features=world.parts.features,
            embeddings={LABEL: table},
            contexts=CONTEXTS.empty(),
            glosses=GLOSSES.empty(),
        )
        side = lambda given=given: _Side.of(world.parts.sae, given, LABEL)  # noqa: E731  # pyright: ignore[reportArgumentType]
        assert side() if table is vectors else "polysem features" in do.hint(side)
    rows = np.eye(4)
    rows[1, 2] = np.nan
    mine = lambda: mine_pairs(rows, None, min_interference=0.3, max_similarity=None)  # noqa: E731
    assert "zeros" in do.hint(mine)
    rows[1] = 0
    mine()
    normal = load_sae(str(sae_fixtures.write_openai_v5_pre_v6(do.folder / "n", sae_fixtures.planted())))
    plain = load_sae(str(sae_fixtures.write_saelens_v6(do.folder / "p", sae_fixtures.planted())))
    assert "[[saes]]" in do.hint(lambda: Ends.of("a", normal))
    assert Ends.of("a", plain)
    along, moment = np.eye(4)[0], np.eye(4)
    assert "--target" in do.hint(lambda: least_collateral(along, np.eye(4)[1], np.zeros((1, 4)), moment))
    assert least_collateral(along, along, np.zeros((1, 4)), moment) @ along == pytest.approx(1)
    assert do.hint(lambda: zoo_path("models", "no such")) == "polysem zoo"
    name = re.findall(r"zoo:(\w+)", do.command("zoo"))[0]
    assert zoo_path("models", name).is_dir()
    model = tiny_model("gpt2")
    assert "tokenizer=" in do.hint(lambda: load_model(model.model))
    assert load_model(model.model, tokenizer=model.tokenizer)
    assert "load_sae(" in do.hint(lambda: load_sae(object()))
    folder = transcoder_fixtures.sparsify(
        do.folder / "q", transcoder_fixtures.planted(k=4), coalesce_topk="group"
    )
    value = do.hint(lambda: load_transcoders(folder)).partition("coalesce_topk = ")[2].strip('"')
    other = transcoder_fixtures.sparsify(
        do.folder / "r", transcoder_fixtures.planted(k=4), coalesce_topk=value
    )
    assert load_transcoders(other).layers

    def harvested(where: str, corpus: str) -> StoredActivations:
        tokens = np.arange(40, dtype=np.int32).reshape(4, 10)
        return harvest(model, tokens, [STREAM], do.folder / where, n_special=1, about={"corpus": corpus})

    harvested("acts", "a")
    assert "--work" in do.hint(lambda: harvested("acts", "b"))
    harvested("acts-b", "b")
    (do.folder / "acts" / "harvest.json").write_text("{")
    subprocess.run(do.hint(lambda: harvested("acts", "a")).partition(", then")[0], shell=True, check=True)
    kept = harvested("acts", "a")
    part_file(kept.folder, STREAM, 0).write_bytes(b"x")
    subprocess.run(do.hint(lambda: kept.part(STREAM, 0)).partition(", then")[0], shell=True, check=True)
    assert harvested("acts", "a").part(STREAM, 0).shape == (4, 9, 16)
    state, path = foreign.trained(), do.folder / "state"
    save(state, path, mark="a")
    assert str(path) in do.hint(lambda: restore(foreign.trained(), path, mark="b"))
    path.unlink()
    save(state, path, mark="b")
    restore(foreign.trained(), path, mark="b")
    bare = json.dumps({"choices": [{"text": " sea", "logprobs": None}]})
    first = {"token": " sea", "logprob": "high"}
    drawn = first | {"top_logprobs": [first]}
    odd = json.dumps({"choices": [{"text": " sea", "logprobs": {"content": [drawn]}}]})
    answer = lambda body: parse_answer(body, api="chat", k=2, where="t")  # noqa: E731
    assert do.hint(lambda: answer("{}")) == "check target.url and target.kind"
    assert "expected choices" in do.hint(lambda: answer(odd))
    assert "serve the model" in do.hint(lambda: answer(bare))
    assert answer(foreign.ANSWER).tokens
    samples = lambda n: parse_samples(foreign.ANSWER, api="chat", n=n, where="t")  # noqa: E731
    assert "target.samples" in do.hint(lambda: samples(3))
    assert samples(1).tokens


@followed(
    "transfer/explainer.py: harvest features first: polysem features",
    "saes/fidelity.py: load the model with dtype",
    "stats/arms.py: polysem plan STUDY.toml",
    "paper/selection.py: more prompts, or a prompts.confirm_fraction",
    "transfer/pools.py: raise pools.nearest or lower pools.size",
)
def numbers(do: Following) -> None:
    reply = lambda *_: '{"gloss": "the sea"}'  # noqa: E731
    assert "polysem features" in do.hint(lambda: explain([], reply))
    assert explain([ExplainedContext((" sea",), (1.0,))], reply) == "the sea"
    weights = sae_fixtures.planted()
    sae = load_sae(str(sae_fixtures.write_saelens_v6(do.folder / "s", weights)))
    large = sae_fixtures.inputs(weights) * 1e5
    assert '"float32"' in do.hint(lambda: measure(sae, large.half().float()))
    assert measure(sae, large).n_tokens
    arm, prompt, ok = np.zeros(3, int), np.zeros(3, int), np.ones(3, bool)
    assert (
        do.hint(lambda: both_signs(arm, prompt, np.array([1.0, 1.0, -1.0]), ok)) == "polysem plan STUDY.toml"
    )
    assert both_signs(arm[:2], prompt[:2], np.array([1.0, -1.0]), ok[:2])[0].tolist() == [0]
    base, doses = np.ones(4), np.array([-1.0, 1.0])
    edited = np.random.default_rng(0).uniform(1, 2, (4, 2))
    chosen = lambda reported: select(base, edited, doses=doses, reported=reported)  # noqa: E731
    assert "confirm_fraction" in do.hint(lambda: chosen(np.ones(4, bool)))
    assert chosen(np.array([True, True, False, False]))
    among = Universe((" a", " b", " c"), np.zeros(3, int), np.zeros((3, 1)))

    def drawn(*near: int) -> tuple[str, ...]:
        return _draw(("x", "y"), dict.fromkeys("xy", np.array(near)), among, np.random.default_rng(0))

    assert "pools.nearest" in do.hint(lambda: drawn(0))
    assert len(set(drawn(0, 1, 2))) == 2
