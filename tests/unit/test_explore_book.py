"""Opening a run folder: only what manifests name, nothing outside, and a study that is still running."""

import json
import re
import shutil

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polysem.errors import StoreError
from polysem.explore import Book
from polysem.explore.documents import feature, floors, neuronpedia_base, overview, progress
from polysem.explore.figures import SECTIONS, maps, measured, of_features, of_pair, section
from polysem.explore.output import rows_as
from polysem.explore.query import Query, Sql
from polysem.report import write_report
from polysem.store import io
from polysem.store.manifest import Manifest, Output
from polysem.store.tables import ATLAS_TOP, TRANSFER_SETS
from support.synthetic import SyntheticStudy, finish_beside, synthetic_run

WORLD = SyntheticStudy(n_features=60, n_targets=3, n_prompts=4, doses=(0.1,), sources_per_bin=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("run"), WORLD)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def rewrite_manifest(folder, stage, change):
    """Change the outputs of a manifest and write it with a fitting fingerprint, as an attacker would."""
    path = folder / stage / "manifest.json"
    manifest = Manifest.read(path, rebuild="")
    outputs = change(dict(manifest.outputs))
    Manifest(manifest.made_from, outputs, manifest.facts, manifest.made).write(path)


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(StoreError, match=r"study\.toml"):
        Book(tmp_path)


def test_a_manifest_cannot_name_a_file_outside(folder, tmp_path):
    shutil.copy(folder / "pairs" / "pairs.parquet", tmp_path / "secret.parquet")
    rewrite_manifest(
        folder,
        "pairs",
        lambda o: (
            {k: v for k, v in o.items() if k != "pairs/pairs.parquet"}
            | {"pairs/pairs-/../../../secret.parquet": Output("0")}
        ),
    )
    book = Book(folder)
    assert "expected a path below" in book.problems["pairs"]
    with pytest.raises(StoreError, match="expected a path below"):
        book.relation("pairs")
    assert book.page(Query.parse(book.relation("features")))[1] == 120  # the rest is there


def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path):
    target = folder / "pairs" / "pairs.parquet"
    target.rename(tmp_path / "elsewhere.parquet")
    target.symlink_to(tmp_path / "elsewhere.parquet")
    assert "is a link that leads out of" in Book(folder).problems["pairs"]


def test_duckdb_cannot_reach_out(folder, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    book = Book(folder)
    statements = (
        f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
    )
    for statement in statements:
        with pytest.raises((duckdb.Error, StoreError)):
            book.ask(Sql(statement, []))
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "another table"])
def test_a_damaged_table_is_said_and_the_rest_is_shown(folder, damage):
    path = folder / "pairs" / "pairs.parquet"
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:1000])
        case "missing":
            path.unlink()
        case _:
            shutil.copy(folder / "pairs" / "density.parquet", path)
    book = Book(folder)
    assert "pairs.parquet" in book.problems["pairs"]
    assert "pairs" not in overview(book)["relations"]
    assert len(list(maps(book))) == 2


def break_inside(path, column=0):
    """Spoil the header of a page: the footer, which is read first, stays whole."""
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\x0d" * 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["features/features", "pairs/pairs", "effects/pair_effects"])
def test_a_table_that_is_damaged_inside_is_a_problem_of_its_own(folder, name):
    path = folder / f"{name}.parquet"
    break_inside(path)
    book = Book(folder)
    assert "cannot be read" in book.problems[path.stem]
    assert path.stem not in overview(book)["relations"]
    assert book.page(Query.parse(book.relation("contexts")))[1] > 0


def test_damage_that_is_met_when_a_table_is_asked_for_is_said(folder):
    break_inside(folder / "features" / "contexts.parquet")
    book = Book(folder)
    query = Query.parse(book.relation("contexts"))
    with pytest.raises(StoreError, match="cannot be read"):
        book.page(query)
    for wanted in ("csv", "jsonl", "parquet"):
        with pytest.raises(StoreError, match="cannot be read"):
            rows_as(book, query, wanted)


def test_a_wrong_statement_is_no_damaged_table(whole):
    with pytest.raises(duckdb.CatalogException):
        Book(whole).ask(Sql("SELECT * FROM nothing", []))


def test_a_damaged_manifest_is_said(folder):
    (folder / "effects" / "manifest.json").write_text("{")
    book = Book(folder)
    assert "manifest.json" in book.problems["effects"]
    assert "steering" not in book.relations
    assert "pairs" in book.relations


@pytest.mark.parametrize("stages", [(), ("features",), ("features", "pairs"), ("features", "pairs", "plan")])
def test_an_unfinished_study_shows_what_there_is(tmp_path, stages):
    book = Book(synthetic_run(tmp_path, WORLD, stages=stages))
    seen = overview(book)
    assert {s["stage"] for s in seen["stages"] if s["finished"]} == set(stages)
    assert floors(book) == {"floors": []}
    assert len(list(maps(book))) == (2 if "pairs" in stages else 0)
    if "pairs" not in stages:
        with pytest.raises(StoreError, match="holds no table pairs yet"):
            book.relation("pairs")
    if "features" in stages:
        assert feature(book, WORLD.saes[0], 3)["gloss"]
    else:
        with pytest.raises(StoreError, match="holds no table features yet"):
            feature(book, WORLD.saes[0], 3)


def test_parts_fill_in_while_a_stage_is_at_work(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    manifest = Manifest.read(folder / "pairs" / "manifest.json", rebuild="")
    (folder / "pairs" / "manifest.json").unlink()
    for file in (folder / "pairs").glob("*.parquet"):
        file.unlink()
    book = Book(folder)
    assert "pairs" not in book.relations
    assert stage_of(progress(book), "pairs") == {"finished": False, "n_parts": 0, "planned_parts": 2}
    source = Book(whole)
    n = [
        row["n"]
        for row in source.ask(
            Sql("SELECT sae, count(*) AS n FROM t_pairs GROUP BY sae ORDER BY sae DESC", [])
        )
    ]
    for k, sae in enumerate(WORLD.saes):
        write_part(folder, whole, manifest, k, sae)
        book._looked = 0.0
        found = progress(book)
        assert stage_of(found, "pairs") == {"finished": False, "n_parts": k + 1, "planned_parts": 2}
        assert book.page(Query.parse(book.relation("pairs")))[1] == sum(n[: k + 1])


def test_a_part_made_from_other_tables_does_not_count(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    manifest = Manifest.read(folder / "pairs" / "manifest.json", rebuild="")
    (folder / "pairs" / "manifest.json").unlink()
    recipe = manifest.made_from
    old = Manifest(
        type(recipe)(**{**vars(recipe), "inputs": {"features/features.parquet": "0" * 64}}), manifest.outputs
    )
    write_part(folder, whole, old, 0, WORLD.saes[0])
    assert "pairs" not in Book(folder).relations


def stage_of(found, stage):
    row = next(s for s in found["stages"] if s["stage"] == stage)
    return {name: row[name] for name in ("finished", "n_parts", "planned_parts")}


def write_part(folder, whole, manifest, k, sae):
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from polysem.store.tables import STAGES

    outputs = {}
    for schema in STAGES["pairs"]:
        table = pq.read_table(whole / "pairs" / f"{schema.name}.parquet")
        file = f"pairs/{schema.name}-{k:05d}-of-00002.parquet"
        mine = table.filter(pc.equal(table["sae"], sae))
        outputs[file] = Output(io.write_table(folder / file, mine, schema), mine.num_rows)
    Manifest(manifest.made_from, outputs).write(folder / "pairs" / f"part-{k:05d}-of-00002.json")


def test_tables_of_other_commands_are_shown(folder):
    rows = [
        {
            "sae": WORLD.saes[0],
            "target": 1,
            "rank": k,
            "source": 2 + k,
            "effect": 1.0 - k,
            "interference": 0.3,
            "similarity": 0.1,
        }
        for k in range(2)
    ]
    table = pa.Table.from_pylist(rows, schema=ATLAS_TOP.arrow())
    finish_beside(folder, "atlas", {"00-atlas_top.parquet": (table, ATLAS_TOP)})
    sets = {"category": "location", "arm": "shared", "n_strings": 3, "n_treated": 1, "n_reference": 2}
    sets |= {"overlap": "{}", "imbalance": "{}", "reason": None}
    table = pa.Table.from_pylist([sets], schema=TRANSFER_SETS.arrow())
    finish_beside(folder, "transfer", {"transfer_sets.parquet": (table, TRANSFER_SETS)})
    book = Book(folder)
    found, total = book.page(Query.parse(book.relation("atlas_top"), sort="-effect"))
    assert total == 2
    assert found[0]["gloss_source"]
    assert book.page(Query.parse(book.relation("transfer_sets")))[0] == [sets]
    with pytest.raises(StoreError, match="polysem transfer"):
        book.relation("transfer_effects")
    assert "transfer" not in {s["stage"] for s in overview(book)["stages"]}
    (folder / "transfer" / "manifest.json").write_text("{")
    assert "transfer" in Book(folder).problems


def test_a_change_is_seen_at_the_next_look(folder, monkeypatch):
    monkeypatch.setattr("polysem.explore.book._LOOK_EVERY", 3600.0)
    book = Book(folder)
    before = book.version
    shutil.rmtree(folder / "effects")
    assert book.look() == before  # looked a moment ago
    book._looked -= 7200
    assert book.look() != before
    assert "steering" not in book.relations


def test_documents_are_plain_json(folder):
    book = Book(folder)
    for document in (
        overview(book),
        floors(book),
        progress(book),
        feature(book, WORLD.saes[1], 7),
    ):
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_map_counts_every_pair(folder):
    book = Book(folder)
    n = WORLD.n_features
    for shown in maps(book):
        (cells,) = re.findall(r'data-cells="(.*?)"', str(shown.drawing))
        assert sum(cell[4] for cell in json.loads(cells)) == n * (n - 1) // 2
        listed = [int(k) for k in re.findall(r">(\d+) pairs listed<", str(shown.drawing))]
        rows, total = book.page(Query.parse(book.relation("pairs"), filters=[f"sae={shown.of}"], limit=1000))
        assert listed == [sum(r["interference"] > 0 for r in rows), sum(r["interference"] <= 0 for r in rows)]
        assert sum(listed) == total


def test_the_figures_are_those_of_the_report_to_the_byte(folder):
    report = write_report(folder).read_text()
    book = Book(folder)
    pieces = [section(book, name) for name in SECTIONS]
    pieces += [of_pair(book, *pair) for pair in measured(book)]
    for sae in WORLD.saes:
        pieces.append(of_features(book, sae, range(WORLD.n_features)))
    drawn = [f for piece in pieces for f in re.findall(r"<figure.*?</figure>", piece, flags=re.S)]
    # The report draws nothing of what needs one pair to be chosen: lines to mark it on, effects taken apart.
    only_here = re.compile(r'data-of="(apart|interference/|similarity/)')
    of_both = [f for f in drawn if not only_here.search(f)]
    told = set(re.findall(r"<figure.*?</figure>", report, flags=re.S))
    pairs = {m for f in told for m in re.findall(r'data-of="(.*?/\d+/\d+)"', f)}
    assert len(pairs) > 5
    missing = [f for f in of_both if f not in told and not not_told(f, pairs, told)]
    assert not missing, missing[0]
    assert len(told & set(of_both)) > 20


def not_told(figure, pairs, told):
    """Whether it is of a pair or feature that the report's table does not list."""
    (of,) = re.findall(r'^<figure class="panel" data-of="(.*?)"', figure)
    listed = {"/".join([*p.split("/")[:-2], end]) for p in pairs for end in p.split("/")[-2:]}
    return of.count("/") in (1, 2) and of not in pairs | listed


@pytest.mark.parametrize(
    ("glosses", "wanted"),
    [
        (
            "neuronpedia:gpt2-small/6-res_post_32k-oai",
            "https://www.neuronpedia.org/gpt2-small/6-res_post_32k-oai",
        ),
        (
            "neuronpedia:exports/saved.json#gemma-2-2b/20-gemmascope-res-16k",
            "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k",
        ),
        ("neuronpedia:exports/saved.json#20-gemmascope-res-16k", None),
        ("neuronpedia:https://example.org/x", None),
        ("neuronpedia:some/where/deep", None),
        ("file:glosses.csv", None),
        ("tokens", None),
    ],
)
def test_an_address_at_neuronpedia_only_where_the_study_names_one(folder, glosses, wanted):
    study = Book(folder).study
    own = study.saes[0].model_copy(update={"glosses": glosses})
    study = study.model_copy(update={"saes": (own, study.saes[1])})
    assert neuronpedia_base(study, WORLD.saes[0], list(WORLD.saes)) == wanted
    assert neuronpedia_base(study, WORLD.saes[1], list(WORLD.saes)) is None
