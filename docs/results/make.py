"""What holds on real models: the small tables of the study of record, and the page that is made of them and of nothing else.

    python docs/results/make.py runs/real    # tables and pictures from finished runs (`make real`), then the page
    python docs/results/make.py              # the page from the tables
    python docs/results/make.py --check      # writes nothing; ends with 1 where the page is not what the tables say

A verdict is worked out from an interval by rule (`claims.verdict`); no number is written by hand.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from claims import MIDDLE, STUDIES, Kept, Row
from sections import page

from polysem.glosses import embed_texts, shipped_glosses
from polysem.glosses.shipped import shipped_file
from polysem.paper.degree import PATHS
from polysem.report import figures
from polysem.report.source import Run, open_run, where
from polysem.stats.rows import parse_group
from polysem.store.manifest import Manifest
from polysem.store.run import RunFolder
from polysem.transfer.result import read_transfer

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
EMBEDDER = "minilm"
DIGITS = 6
"""significant digits of a number in a table"""


def effects(run: Run) -> Iterator[Row]:
    """Contrasts on log-odds over all bins, and the declared ones on whatever they read; each with its claim."""
    told = {(r["contrast"], r["group"]): r for r in run.table("findings").to_pylist()}
    for row in run.table("effects").to_pylist():
        parts = parse_group(row["group"])
        found = told.get((row["contrast"], row["group"]), {"declared": False, "claim": "", "reach": None})
        if parts.get("bin", "all") == "all" and (parts.get("outcome") == "logodds" or found["declared"]):
            named = {k: parts.get(k, "") for k in ("locus", "sae", "tokens", "outcome", "relation")}
            yield row | named | {k: found[k] for k in ("declared", "claim", "reach")}


def rows_of(name: str, **parts: str) -> Callable[[Run], Iterator[Row]]:
    """The rows of a table whose columns have these values, as they are."""
    return lambda run: iter(where(run.table(name), **parts).to_pylist())


def walks(run: Run) -> Iterator[Row]:
    """From the paper's choices to the strict ones, of the tokens that activate a target; of those it writes the paper's end."""
    rows = where(run.table("presets"), path="walk").to_pylist()
    return (row for row in rows if row["token_set"] == "in" or not row["step"])


def by_degree(run: Run) -> Iterator[Row]:
    """The paper's own neurons, one of every bin of degree."""
    return (row for row in run.table("presets").to_pylist() if row["path"] in PATHS)


def written(run: Run) -> dict[tuple[str, int], str]:
    """The lines in plain words that come with the run's dictionaries, by (SAE, feature); choices do not know of them."""
    saes = Manifest.read(run.folder / "features" / "manifest.json", rebuild="make real").facts.get("saes", {})
    return {
        (label, gloss.feature): gloss.text
        for label, known in saes.items()
        if shipped_file(known["ref"]) is not None
        for gloss in shipped_glosses(known["ref"], d_sae=known["d_sae"])
    }


def steered(run: Run) -> dict[str, dict[tuple[str, int, int], Row]]:
    """Rows of the plan for features, one of every (SAE, target, source), by relation."""
    columns = ["sae", "locus", "relation", "target", "source", "source_sae", "interference", "similarity"]
    found: dict[str, dict[tuple[str, int, int], Row]] = {}
    for row in where(run.table("plan", columns=columns), locus="feature").to_pylist():
        if row["source"] is not None:
            found.setdefault(row["relation"], {})[row["sae"], row["target"], row["source"]] = row
    return found


def glossed(run: Run) -> Iterator[Row]:
    """Of the features that are read or steered, how many have a line in plain words."""
    lines, rows = written(run), steered(run)
    pairs, others = (
        rows.pop("pair", {}),
        [key for name, some in rows.items() if name != "self" for key in some],
    )
    ends = {
        "target": {(sae, target) for sae, target, _ in pairs},
        "source": {(sae, source) for sae, _, source in pairs},
        "control": {(sae, source) for sae, _, source in others},
    }
    for role, features in ends.items():
        yield {"role": role, "n_features": len(features), "n_written": len(features & set(lines))}


def in_words(run: Run) -> Iterator[Row]:
    """Pairs whose features both have a line, with the cosine of the two lines."""
    lines = written(run)
    pairs = steered(run).get("pair", {})
    known = [
        (row, lines[s, t], lines[s, o])
        for (s, t, o), row in pairs.items()
        if (s, t) in lines and (s, o) in lines
    ]
    texts = list(dict.fromkeys(text for _, *both in known for text in both))
    vectors = dict(zip(texts, embed_texts(texts, EMBEDDER, cache=None).vectors, strict=True)) if texts else {}
    for row, target, source in known:
        cosine = float(vectors[target] @ vectors[source])
        yield row | {"target_line": target, "source_line": source, "line_similarity": cosine}


def unrelated(run: Run) -> Iterator[Row]:
    """How many pairs of unlike glosses there are at an interference and above, beside all pairs and what chance gives."""
    pairs = run.table("pairs", columns=["sae", "interference", "is_duplicate"]).to_pylist()
    for row in run.table("spectrum").to_pylist():
        if row["threshold"] >= run.study.pairs.min_interference:
            mine = [p for p in pairs if p["sae"] == row["sae"] and p["interference"] >= row["threshold"]]
            yield row | {"n_unrelated": len(mine), "n_duplicates": sum(p["is_duplicate"] for p in mine)}


def fitted(run: Run) -> Iterator[Row]:
    """How much of real effects the atlas explains, where there is one."""
    if (run.folder / "atlas" / "manifest.json").is_file():
        yield from RunFolder(run.folder).table("atlas_fit").to_pylist()


def stages(folder: Path) -> Iterator[Row]:
    """How long each stage took, and how much it left."""
    for file in folder.glob("*/manifest.json"):
        found = Manifest.read(file, rebuild=f"polysem run --out {folder}")
        n = sum(output.rows or 0 for output in found.outputs.values())
        yield {"stage": file.parent.name, "seconds": 0.0, "started": "", "rows": n} | found.made


KEPT: dict[str, tuple[Callable[[Run], Iterator[Row]], tuple[str, ...]]] = {
    "effects": (effects, (
        "contrast", "locus", "sae", "tokens", "outcome", "relation", "estimate", "lo", "hi", "p", "p_adj", "p_equivalent",
        "unit", "n_pairs", "n_targets", "n_sources", "n_prompts", "n_missing", "declared", "claim", "reach",
    )),
    "presets": (walks, (
        "locus", "tokens", "question", "relation", "step", "choice", "estimate", "se", "lo", "hi", "p", "unit", "n_rows",
        "n_pairs", "n_targets", "note",
    )),
    "degrees": (by_degree, (
        "locus", "tokens", "question", "path", "step", "estimate", "lo", "hi", "p", "unit", "n_rows", "n_pairs", "n_targets", "note",
    )),
    "glossed": (glossed, ("role", "n_features", "n_written")),
    "words": (in_words, (
        "sae", "target", "source", "interference", "similarity", "line_similarity", "target_line", "source_line",
    )),
    "spectrum": (unrelated, (
        "sae", "threshold", "n_pairs", "n_isotropic", "n_covariance", "n_unrelated", "n_duplicates", "d_in", "d_eff",
    )),
    "budgets": (rows_of("budgets", budget="nats"), (
        "locus", "tokens", "reference", "at", "size", "reference_size", "ratio", "lo", "hi", "n_pairs", "n_targets", "note",
    )),
    "neuron_slopes": (rows_of("neuron_slopes"), (
        "locus", "operation", "outcome", "term", "estimate", "lo", "hi", "p", "n_neurons", "n_prompts", "unit", "note",
    )),
    "heterogeneity": (rows_of("heterogeneity"), (
        "contrast", "site", "tokens", "n_saes", "mean", "lo", "hi", "i2", "i2_lo", "i2_hi", "q", "p", "unit", "note",
    )),
    "replication": (rows_of("replication"), (
        "sae", "other", "tokens", "measure", "matched", "best_cosine", "correlation", "lo", "hi", "sign_agreement", "sign_lo",
        "sign_hi", "n_pairs", "n_targets", "note",
    )),
    "power": (rows_of("power"), ("contrast", "locus", "tokens", "se", "smallest", "margin", "unit")),
    "atlas_fit": (fitted, ("sae", "stratum", "r2", "lo", "hi", "slope", "n", "n_targets", "n_pairs", "n_prompts")),
}  # fmt: skip
"""table -> (its rows, the columns that are kept); `tokens` is `token_set` where a table says so"""
OF_TRANSFER: dict[str, tuple[str, ...]] = {
    "transfer_shared": (
        "source_a", "source_b", "n_segments", "n_matched", "n_pairs_a", "n_pairs_b", "n_shared", "expected", "lift", "lift_lo",
        "lift_hi", "fraction", "fraction_lo", "fraction_hi", "p",
    ),
    "transfer_effects": (
        "target", "contrast", "arm", "category", "treated", "reference", "estimate", "lo", "hi", "p", "p_adj", "n_sentences",
        "n_treated", "n_reference", "n_trials", "unit", "note",
    ),
    "transfer_sets": ("category", "arm", "n_strings", "imbalance", "reason"),
}  # fmt: skip


def collect(runs: Path) -> Kept:
    """The small tables, from the runs that are there."""
    kept: Kept = {}

    def add(table: str, study: str, columns: tuple[str, ...], rows: Iterator[Row]) -> None:
        for row in rows:
            own = row | ({"tokens": row["token_set"]} if "token_set" in row else {})
            kept.setdefault(table, []).append({"study": study} | {name: own[name] for name in columns})

    for study, kind in STUDIES.items():
        folder = runs / study
        if not _finished(folder, kind):
            continue
        add(
            "stages",
            study,
            ("stage", "seconds", "rows"),
            iter(sorted(stages(folder), key=lambda r: r["started"])),
        )
        if kind == "transfer":
            for table, found in read_transfer(folder).items():
                if table in OF_TRANSFER:
                    add(table, study, OF_TRANSFER[table], iter(found.to_pylist()))
            continue
        run = open_run(folder)
        for table, (rows, columns) in KEPT.items():
            add(table, study, columns, rows(run))
    return kept


def _finished(folder: Path, kind: str) -> bool:
    return (folder / {"run": "effects", "transfer": "transfer"}[kind] / "manifest.json").is_file()


def draw(runs: Path) -> list[Row]:
    """Pictures of the runs: one map of all pairs, of the first study, and effects against interference; gives what is said below each."""
    found: dict[str, figures.Picture] = {}
    for study in (name for name, kind in STUDIES.items() if kind == "run" and _finished(runs / name, kind)):
        run = open_run(runs / study)
        some = {name: where(run.table(name), sae=MIDDLE) for name in ("density", "spectrum", "pairs")}
        found.setdefault("map", figures.pairs(SimpleNamespace(**some, config=run.study.pairs)))
        found[study] = figures.study(run)
    for name, picture in found.items():
        picture.save(HERE / f"{name}.svg")
    return [{"name": name, "title": p.title, "caption": p.caption} for name, p in found.items()]


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return "" if value is None else str(value)


def write_tables(kept: Kept) -> None:
    """One CSV file a table."""
    for name, rows in kept.items():
        with (HERE / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows([_written(v) for v in row.values()] for row in rows)


def read_tables(folder: Path = HERE) -> Kept:
    """The tables as they lie there; a cell is a number where it can be one, and None where it is empty."""
    kept: Kept = {}
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            kept[file.stem] = [{k: _read(v) for k, v in row.items()} for row in csv.DictReader(lines)]
    return kept


def _read(text: str) -> object:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    try:
        return float(text)
    except ValueError:
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the finished runs")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.runs is not None:
        write_tables(collect(args.runs) | {"pictures": draw(args.runs)})
    made = page(read_tables())
    if args.check:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
