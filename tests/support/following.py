"""Cases that raise an error whose hint names a setting or a command, and follow the hint: of a study and its settings.

`following_files` has those of files, options and servers; `tests/house/test_hints_work.py` counts them.
"""

import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from polysem import errors
from polysem.act.base import Recipe, SiteContext, decoder_row, edited_positions, intervention
from polysem.act.neuron import unit_vector
from polysem.atlas import Dictionary, set_responses
from polysem.categories import load_categories
from polysem.cli.app import app
from polysem.config import CorpusConfig, PromptsConfig, SAEConfig, load_study, parse_study, section_of
from polysem.corpus import documents, folder_files, token_rows
from polysem.engine.cache import sae_labels
from polysem.errors import PolysemError
from polysem.features.table import shipped_folder
from polysem.geometry.mine import mine_pairs
from polysem.glosses.base import Gloss
from polysem.glosses.embed import embed_glosses
from polysem.glosses.read import read_glosses
from polysem.glosses.shipped import shipped_glosses
from polysem.models.load import load_outline
from polysem.plan import make_plan
from polysem.plan.degrees import degree_tables
from polysem.plan.index import FeatureIndex
from polysem.positions import PLAIN, positions_of
from polysem.prompts import make_prompts
from polysem.readouts import distinct_ids
from polysem.stats.arms import join_trials
from polysem.store.tables import CLUSTERS, CONTEXTS, GLOSSES, PAIRS, PARTNERS
from polysem.trials import run_batches
from polysem.types import Site
from polysem.worlds.tiny import tiny_model
from support.planted import LABEL, brute_pairs, planted_study

SOURCES = Path(errors.__file__).parent
COMMAND = re.compile(
    r"polysem [a-z]|(?<![\w-])--[a-z]|\bpip (un)?install\b|^(rm|mv|chmod|cp|sed|iconv) |\bhf (auth|download)\b|"
    r"llama-gguf-split|\bload_[a-z]+\("
)
SETTING = re.compile(
    r"\b(model|saes|corpus|features|glosses|pairs|prompts|plan|effects|categories|joint|layers|pools|shared|cost|targets?|"
    r"frames|judges)\.(?!md\b|toml\b)[a-z_]+\b(?!\()|\[\[?[a-z]+\]\]?|(?<![\w.])[a-z_]+ ?= ?['\"\[{\w-]|\bset [a-z_]+\b"
)
STREAM = Site(1, "hook_resid_post")


class Following:
    """The calls of a case: which hints they gave."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seen: list[tuple[set[str], str]] = []

    def hint(self, call: Callable[[], object]) -> str:
        """The hint of what `call` refuses."""
        with pytest.raises(PolysemError) as caught:
            call()
        said = caught.value.hint or ""
        if re.match(r"(polysem|rm|mv|chmod|cp|sed|iconv) ", said) and str(self.folder) in said:
            assert f"'{self.folder}" in said, f"a shell takes the path apart: {said}"
        frames = {Path(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)}
        inside = {f.relative_to(SOURCES).as_posix() for f in frames if f.is_relative_to(SOURCES)}
        self.seen.append((inside, said))
        return said

    def command(self, *arguments: str) -> str:
        """What a command prints; it ends well."""
        ended = CliRunner().invoke(app, list(arguments))
        assert ended.exit_code == 0, f"{ended.output}{ended.exception!r}"
        return ended.stdout


CASES: dict[str, tuple[tuple[str, ...], Callable[[Following], None]]] = {}


def followed(*sites: str) -> Callable[[Callable[[Following], None]], None]:
    """A case for hints: `file: beginning of the hint`."""

    def keep(case: Callable[[Following], None]) -> None:
        CASES[case.__name__] = sites, case

    return keep


# A study in closed form: what belongs to the plan and to the feature table ---------------------------------------------

PLANTED = """
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
[plan]
n_targets = 2
sources_per_bin = 1
n_random = 1
doses = [0.1]
"""


class World:
    """A planted study, its plan, and its trials."""

    def __init__(self) -> None:
        self.parts, self.study = planted_study(n_plain=20, n_prompts=4), parse_study(PLANTED)
        self.plan = self.planned().plan
        self.batches = sorted(set(self.plan["batch"].to_pylist()))[:1]

    def planned(self, study: Any = None, **changes: Any) -> Any:
        parts = {
            "features": self.parts, "pairs": brute_pairs(self.parts, self.study.pairs),
            "prompts": self.parts.prompts, "saes": self.parts.saes,
        } | changes  # fmt: skip
        return make_plan(study or self.study, **parts)

    def run(self, **changes: Any) -> pa.Table:
        parts = {"plan": self.plan, "prompts": self.parts.prompts, "features": self.parts, "model": self.parts.model,
                 "saes": self.parts.saes, "batches": self.batches} | changes  # fmt: skip
        return run_batches(parts.pop("plan"), **parts)

    def changed(self, **cells: Any) -> pa.Table:
        """The first batch of the plan, its first row with other cells."""
        rows = [row for row in self.plan.to_pylist() if row["batch"] == self.batches[0]]
        rows[0] |= cells
        return pa.Table.from_pylist(rows, schema=self.plan.schema)

    def context(self) -> SiteContext:
        return SiteContext(LABEL, self.parts.sae, self.parts.model.spec, activations=lambda: np.zeros((0, 4)))


@followed(*[f"{file}: polysem plan STUDY.toml" for file in ("act/base.py", "act/neuron.py", "trials.py")])
def plans(do: Following) -> None:
    """Whatever a plan says that cannot be carried out: it is made again, and runs."""
    world = World()
    feature = intervention("feature")
    refused = [
        lambda: Recipe.parse("push hard"),
        lambda: Recipe.parse('{"kind": "decoder", "feature": 1}'),
        lambda: Recipe.of("a").text_of("name"),
        lambda: Recipe.of("a", ids="x").token_ids("ids"),
        lambda: Recipe.of("a").integer("seed"),
        lambda: feature.realise(Recipe.of("no kind"), world.context()),
        lambda: decoder_row(world.context(), 10**6),
        lambda: edited_positions("some", 3),
        lambda: unit_vector(Recipe.of("neuron", neuron=99), width=4, where="here"),
        lambda: world.run(batches=[10**6]),
        lambda: world.run(saes={"t": world.parts.sae}),
        lambda: world.run(prompts=world.parts.prompts.slice(99)),
        lambda: world.run(plan=world.changed(recipe="push hard")),
        lambda: world.run(plan=world.changed(positions="all")),
        lambda: world.run(plan=world.changed(site="blocks.7.hook_resid_post")),
    ]
    for call in refused:
        assert do.hint(call).startswith("polysem plan STUDY.toml")
    assert set(world.run(plan=world.planned().plan)["status"].to_pylist()) == {"ok"}


@followed(
    "plan/index.py: polysem features STUDY.toml",
    "plan/index.py: polysem features STUDY.toml, with the SAE",
    "plan/layout.py: polysem features STUDY.toml",
    "plan/degrees.py: polysem features STUDY.toml",
    "atlas.py: polysem features STUDY.toml",
)
def feature_tables(do: Following) -> None:
    """A feature table of other things: the one that is made of these gives a plan."""
    world = World()
    features, vectors = world.parts.features, world.parts.embeddings[LABEL]

    def index(table: pa.Table, rows: np.ndarray) -> FeatureIndex:
        return FeatureIndex.of(
            LABEL, world.parts.sae, features=table, embeddings=rows, pairs=PAIRS.empty(), partners=PARTNERS.empty(),
            contexts=CONTEXTS.empty(),
        )  # fmt: skip

    def without() -> object:
        tables = {"contexts": CONTEXTS, "glosses": GLOSSES, "clusters": CLUSTERS}
        empty = {name: schema.empty() for name, schema in tables.items()}
        return world.planned(features=SimpleNamespace(features=features, embeddings={}, **empty))

    other = features.set_column(
        features.column_names.index("feature"), "feature", pa.array([10**6] * len(features), pa.int32())
    )
    rows = np.eye(4)
    for call in (
        lambda: index(features, vectors[:1]),
        lambda: index(other, vectors),
        without,
        lambda: degree_tables(LABEL, rows, np.zeros(3, np.int64), [], rows, seed=0),
        lambda: Dictionary.of(rows, np.full((4, 2), np.nan)),
    ):
        assert "polysem features STUDY.toml" in do.hint(call)
    index(features, vectors)
    assert world.planned().plan.num_rows
    Dictionary.of(rows, np.ones((4, 2)))


@followed(
    "plan/layout.py: check [prompts]",
    "plan/layout.py: raise pairs.max_similarity or lower pairs.min_interference",
)
def plans_without_rows(do: Following) -> None:
    world = World()
    assert "[prompts]" in do.hint(lambda: world.planned(prompts=world.parts.prompts.slice(0, 0)))
    strict = parse_study(PLANTED + "[pairs]\nmax_similarity = 0.05\n")
    hint = do.hint(
        lambda: world.planned(strict, pairs={"pairs": PAIRS.empty(), "partners": PARTNERS.empty()})
    )
    assert "raise pairs.max_similarity" in hint
    assert world.planned().plan.num_rows


@followed("stats/arms.py: polysem trials STUDY.toml", "stats/arms.py: polysem verify RUN")
def trials_of_another_plan(do: Following) -> None:
    world = World()
    trials = world.run()
    names = trials.column_names
    other = trials.set_column(
        names.index("trial_id"), "trial_id", pa.array([f"?{n}" for n in range(len(trials))])
    )
    assert "polysem trials" in do.hint(lambda: join_trials(world.plan, other))
    holes = pa.array([float("nan")] * len(trials), trials.schema.field("kl").type)
    assert "verify" in do.hint(
        lambda: join_trials(world.plan, trials.set_column(names.index("kl"), "kl", holes))
    )
    assert join_trials(world.plan, trials).num_rows == len(world.plan)


# Settings of a study ---------------------------------------------------------------------------------------------------


def _rows_of(ref: Path, **settings: int) -> object:
    model = tiny_model("gpt2")
    given = {"n_tokens": 40, "context": 16} | settings
    return token_rows(str(ref), model, positions=positions_of(model), **given)


@followed(
    "corpus.py: set corpus.ref in the study, or --corpus",
    "corpus.py: set corpus.ref in the study",
    "corpus.py: set corpus.context =",
    "corpus.py: name a longer corpus, or lower corpus.context",
    "corpus.py: name a longer corpus, or set corpus.n_tokens =",
)
def corpora(do: Following) -> None:
    text, other, empty = do.folder / "a.txt", do.folder / "a.docx", do.folder / "none"
    text.write_text("the sea and the king. " * 8)
    other.write_text("x")
    empty.mkdir()
    assert "--corpus" in do.hint(lambda: documents(str(do.folder / "b.txt")))
    assert do.hint(lambda: list(documents(str(other)))) == "set corpus.ref in the study"
    assert do.hint(lambda: folder_files(empty)) == "set corpus.ref in the study"
    context = int(re.findall(r"\d+", do.hint(lambda: _rows_of(text, context=10**4)))[0])
    assert "lower corpus.context" in do.hint(lambda: _rows_of(text, context=context, n_tokens=10))
    found = do.hint(lambda: _rows_of(text, n_tokens=10**6))
    _rows_of(text, n_tokens=int(re.findall(r"n_tokens = (\d+)", found)[0]))
    assert list(documents(str(text)))


@followed(
    "prompts.py: prompts.source = 'templates'",
    "prompts.py: set prompts.source = 'corpus'",
    "prompts.py: shorten the prompt, or lower prompts.length",
    "models/text.py: set prompts.chat_template = false, or name",
    "models/text.py: set prompts.chat_template = false",
)
def prompts(do: Following) -> None:
    model, file = load_outline("zoo:gpt2"), do.folder / "p.txt"
    file.write_text("the sea\n")

    def make(**settings: Any) -> pa.Table:
        return make_prompts(PromptsConfig(n=4, **settings), CorpusConfig(), model, positions=PLAIN, seed=0)

    def followed_in(hint: str) -> pa.Table:
        key, value = re.findall(r"prompts\.(\w+) = '?(\w+)", hint)[0]
        return make(**{"source": "templates", key: value == "true" if value in ("true", "false") else value})

    for bad in (
        {"source": f"file:{file}"},
        {"source": "fil:x"},
        {"source": "templates", "chat_template": True},
    ):
        assert followed_in(do.hint(lambda bad=bad: make(**bad))).num_rows == 4
    tokenizer = model.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} and {{ m.content }}{% endfor %}"
    assert followed_in(do.hint(lambda: make(source="templates", chat_template=True))).num_rows == 4
    tokenizer.chat_template = None
    file.write_text(f"the sea\n{'the sea and ' * 2000}\n")
    assert "shorten the prompt" in do.hint(lambda: make(source=f"file:{file}"))
    file.write_text("the sea\nthe king\n")
    assert make(source=f"file:{file}").num_rows == 2


@followed(
    "features/table.py: set features.source",
    "glosses/shipped.py: set glosses.source",
    "glosses/read.py: set glosses.source",
    "glosses/embed.py: set glosses.embedder",
    "glosses/embed.py: embedder = 'minilm'",
    "glosses/embedders.py: set glosses.embedder",
    "glosses/lexical.py: check the path in glosses.similarity",
    "categories.py: set categories.names",
    "engine/cache.py: edit [[saes]]",
    "readouts.py: choose another feature or lower features.target_ratio",
    "atlas.py: raise prompts.n",
    "config.py: polysem init > study.toml",
    "config.py: see every setting: polysem init",
    "geometry/mine.py: give gloss embeddings, or max_similarity=None",
)
def settings(do: Following) -> None:
    """Settings that name something that is not there, and what the hint puts in their place."""
    from polysem.glosses.similarity import open_measure
    from support.meanings import tiny_glove

    study = PLANTED
    assert "harvest" in do.hint(lambda: shipped_folder("a", "planted"))
    assert parse_study(f'{study}[features]\nsource = "harvest"\n').features.source == "harvest"
    assert 'glosses.source = "tokens"' in do.hint(lambda: shipped_glosses("planted", d_sae=4))
    assert parse_study(f'{study}[glosses]\nsource = "tokens"\n')
    assert do.hint(lambda: read_glosses("fil:x")) == "set glosses.source in the study"
    file = do.folder / "g.jsonl"
    file.write_text('{"feature": 1, "gloss": "sea"}\n')
    assert len(read_glosses(f"file:{file}")) == 1
    plain = [Gloss(1, "sea", "gpt", "x")]
    vectors = [replace(plain[0], embedding=np.ones(n, np.float32)) for n in (2, 3)]
    for glosses in (plain, vectors):
        hint = do.hint(lambda g=glosses: embed_glosses(g, np.array([1]), "export", cache=None))
        assert "embedder = 'minilm'" in hint
    assert "glosses.embedder" in do.hint(lambda: embed_glosses(plain, np.array([1]), "bert", cache=None))
    assert embed_glosses(vectors[:1], np.array([1]), "export", cache=None).vectors.shape == (1, 2)
    assert "glosses.similarity" in do.hint(lambda: open_measure(f"tokens:glove:{do.folder / 'no'}"))
    folder = tiny_glove(do.folder / "glove", {"sea": (1, 0), "ship": (0, 1)})
    open_measure(f"tokens:glove:{folder}").compare([("sea",)], [("ship",)])
    assert "categories.names" in do.hint(lambda: load_categories("builtin", ["no such"]))
    load_categories("builtin", ["color"])
    twice = tuple(SAEConfig(ref="x", label="a") for _ in "ab")
    assert "[[saes]]" in do.hint(lambda: sae_labels(twice, ["1", "2"]))
    assert sae_labels((twice[0], SAEConfig(ref="x", label="b")), ["1", "2"]) == ["a", "b"]
    assert "target_ratio" in do.hint(lambda: distinct_ids([], 8))
    assert distinct_ids([3], 8) == [3]
    world = tiny_model("gpt2")
    assert "prompts.n" in do.hint(lambda: set_responses(world, STREAM, [], [[3]]))
    missing = do.folder / "study.toml"
    assert do.hint(lambda: load_study(missing)) == "polysem init > study.toml"
    missing.write_text(do.command("init"))
    assert load_study(missing)
    assert "polysem init" in do.hint(lambda: section_of(PromptsConfig, {"n_promts": 3}))
    assert "n = " in do.command("init")
    rows = np.eye(4)
    assert "max_similarity=None" in do.hint(
        lambda: mine_pairs(rows, None, min_interference=0.3, max_similarity=0.2)
    )
    mine_pairs(rows, None, min_interference=0.3, max_similarity=None)
