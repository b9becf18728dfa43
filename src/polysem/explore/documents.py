"""The documents that views start from: the study at a glance, the map, noise floors, the record of a feature.

Each is plain JSON, made from the tables alone; the static export writes the same documents as files.
"""

import json
import re
from pathlib import Path
from typing import Any

from polysem.config import Study
from polysem.errors import StoreError
from polysem.explore.book import Book
from polysem.explore.query import Sql, categories
from polysem.report import words
from polysem.stats.rows import parse_group
from polysem.store.stages import command
from polysem.store.tables import HOMES, STAGES
from polysem.vocabulary import DOSE_UNITS, LOCI, RELATIONS

NEURONPEDIA = "https://www.neuronpedia.org"
_ADDRESS = re.compile(r"^[A-Za-z0-9._-]+/(?!.*\.(jsonl?|parquet|csv)(\.gz)?$)[A-Za-z0-9._-]+$")
"""MODEL/SOURCE, and no relative path of a file"""
_OF_FEATURE = {
    "glosses": "gloss_index",
    "contexts": "rank",
    "clusters": "similarity_cut",
    "partners": "max_similarity, interference_bin",
}
"""tables of a feature's record -> the order of its rows"""


def overview(book: Book) -> dict[str, Any]:
    """The study at a glance, and everything that there is to list."""
    study = book.study
    return {
        "version": book.version,
        "name": study.name,
        "model": study.model.ref,
        "saes": _saes(book),
        "stages": _stages(book),
        "pairs": study.pairs.model_dump(mode="json"),
        "level": study.effects.level,
        "margin": study.effects.margin,
        "max_kl": study.effects.max_kl,
        "doses": list(study.plan.doses),
        "dose_unit": study.plan.dose_unit,
        "token_sets": list(study.plan.token_sets),
        "loci": _loci(book),
        "size": _size(book),
        "relations": {name: relation.describe() for name, relation in book.relations.items()},
        "homes": {name: stage for name, (stage, _) in HOMES.items()},
        "commands": {stage: command(stage, "RUN") for stage in sorted(STAGES)},
        "categories": categories(),
        "vocabulary": words.as_json(),
        # An export may go anywhere: where the study lies on this machine is nobody's business.
        "problems": {
            name: why.splitlines()[0].replace(str(book.folder), "RUN") for name, why in book.problems.items()
        },
    }


def as_json(value: Any) -> str:
    """A document as text, short and without NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def progress(book: Book) -> dict[str, Any]:
    """How far the study is; `version` changes when there is something new to see."""
    return {"version": book.look(), "stages": _stages(book)}


def floors(book: Book) -> dict[str, Any]:
    """What controls do: the central 95 % of their effects, by SAE, locus, control, token set and dose."""
    if not book.has("pair_effects"):
        return {"floors": []}
    sql = (
        "SELECT sae, locus, relation, token_set, dose, quantile_cont(logodds, 0.025) AS lo, "
        "quantile_cont(logodds, 0.975) AS hi, median(kl) AS kl, count(*) AS n FROM t_pair_effects "
        "WHERE NOT list_contains(?, relation) GROUP BY ALL ORDER BY ALL"
    )
    own = [name for name, relation in RELATIONS.items() if relation.role in ("pair", "self")]
    return {"floors": book.ask(Sql(sql, [own]))}


def feature(book: Book, sae: str, number: int) -> dict[str, Any]:
    """Everything that is stored of one feature.

    Raises:
        StoreError: if there is no such feature, or no feature table yet.
    """
    found = features(book, sae, [number]) if 0 <= number < 1 << 31 else []
    if not found:
        raise StoreError(f"{sae!r} has no feature {number} in the feature table")
    return found[0]


def features(book: Book, sae: str, numbers: list[int]) -> list[dict[str, Any]]:
    """The records of some features of one SAE, in the order of their numbers."""
    book.relation("features")
    rows = _of(book, "t_features", sae, numbers, order="feature")
    parts = {
        name: _grouped(_of(book, f"t_{name}", sae, numbers, order=f"feature, {order}"))
        for name, order in _OF_FEATURE.items()
    }
    base = neuronpedia_base(book.study, sae, [row["label"] for row in _saes(book)])
    for row in rows:
        own = row["feature"]
        row |= {name: found.get(own, []) for name, found in parts.items()}
        row["link"] = f"{base}/{own}" if base else None
    return rows


def neuronpedia_base(study: Study, sae: str, labels: list[str]) -> str | None:
    """Address of an SAE's features at Neuronpedia, where its glosses or features were named by it."""
    k = labels.index(sae) if sae in labels else -1
    if not 0 <= k < len(study.saes):
        return None
    own = study.saes[k].glosses
    shared = [study.glosses.source, study.features.source] if len(study.saes) == 1 else []
    for reference in (own, *shared):
        kind, _, rest = (reference or "").partition(":")
        if kind != "neuronpedia":
            continue
        # An export that was saved says by its #MODEL/SOURCE what it is an export of.
        folder, _, name = rest.partition("#")
        if _ADDRESS.match(name):
            return f"{NEURONPEDIA}/{name}"
        if _ADDRESS.match(folder) and not Path(folder).exists():
            return f"{NEURONPEDIA}/{folder}"
    return None


def _of(book: Book, view: str, sae: str, numbers: list[int], *, order: str) -> list[dict[str, Any]]:
    if not book.has(view.removeprefix("t_")):
        return []
    marks = ", ".join("?" for _ in numbers)
    sql = f"SELECT * FROM {view} WHERE sae = ? AND feature IN ({marks}) ORDER BY {order}"
    return book.ask(Sql(sql, [sae, *numbers]))


def _grouped(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.pop("feature"), []).append({k: v for k, v in row.items() if k != "sae"})
    return found


def _saes(book: Book) -> list[dict[str, Any]]:
    """The SAEs in the order of the study, as far as the tables know them."""

    def make() -> list[dict[str, Any]]:
        if not book.has("features"):
            return []
        rows = book.ask(
            Sql(
                "SELECT sae AS label, any_value(site) AS site, count(*) AS n_features, "
                "count(gloss) AS n_glossed FROM t_features GROUP BY sae ORDER BY sae",
                [],
            )
        )
        wanted = [entry.label or entry.site or entry.ref.rpartition("/")[2] for entry in book.study.saes]
        place = {label: k for k, label in reversed(list(enumerate(wanted)))}
        return sorted(rows, key=lambda row: (place.get(row["label"], len(wanted)), row["label"]))

    return book.once("saes", make)


def _stages(book: Book) -> list[dict[str, Any]]:
    parts = _planned_parts(book)
    return [
        {
            "stage": s.stage,
            "finished": s.finished,
            "n_parts": s.n_parts,
            "planned_parts": parts.get(s.stage),
            "rows": s.rows,
            "command": command(s.stage, "RUN"),
        }
        for s in book.stages
    ]


def _planned_parts(book: Book) -> dict[str, int]:
    """How many parts a stage will have, where that is known: one of pairs per SAE; of trials as the plan says."""
    from polysem.store.run import BATCHES_PER_PART

    known = {"pairs": len(book.study.saes)}
    if book.has("plan"):
        n = book.once(
            "batches", lambda: book.ask(Sql("SELECT count(DISTINCT batch) AS n FROM t_plan", []))[0]["n"]
        )
        known["trials"] = max(1, -(-n // BATCHES_PER_PART))
    return known


def _loci(book: Book) -> list[dict[str, Any]]:
    """Every locus with results, and its headline dose."""

    def make() -> list[dict[str, Any]]:
        if not book.has("pair_effects"):
            return []
        doses: dict[str, float] = {}
        if book.has("effects"):
            for row in book.ask(Sql('SELECT DISTINCT "group" FROM t_effects ORDER BY "group"', [])):
                parts = parse_group(row["group"])
                if "locus" in parts and "dose" in parts:
                    doses.setdefault(parts["locus"], float(parts["dose"]))
        found = book.ask(
            Sql(
                "SELECT locus, list(DISTINCT dose ORDER BY dose) AS doses FROM t_pair_effects GROUP BY locus",
                [],
            )
        )
        units = _units(book)
        for row in found:
            row["unit"] = units.get(row["locus"], book.study.plan.dose_unit)
            wanted = doses.get(row["locus"])
            near = None if wanted is None else min(row["doses"], key=lambda d: abs(d - wanted))
            row["headline"] = near
        order = words.in_order(LOCI, (row["locus"] for row in found))
        return sorted(found, key=lambda row: order.index(row["locus"]))

    return book.once("loci", make)


def _units(book: Book) -> dict[str, str]:
    """Locus -> unit of its doses, from the plan; the strengths that the paper's preset adds are not its doses."""
    if not book.has("plan"):
        return {}
    own = [name for name, unit in DOSE_UNITS.items() if not unit.paper]
    where = "WHERE list_contains(?, dose_unit) GROUP BY locus"
    rows = book.ask(Sql(f"SELECT locus, any_value(dose_unit) AS unit FROM t_plan {where}", [own]))
    return {row["locus"]: row["unit"] for row in rows}


def _size(book: Book) -> dict[str, int | None]:
    """The numbers of the first page."""

    def make() -> dict[str, int | None]:
        asked = {
            "examined": ("density", 'SELECT sum("count")::BIGINT AS n FROM t_density'),
            "listed": ("pairs", "SELECT count(*) AS n FROM t_pairs"),
            "steered": ("pair_effects", "SELECT count(*) AS n FROM measured"),
            "planned": ("plan", "SELECT count(*) AS n FROM t_plan"),
            "run": ("trials", "SELECT count(*) AS n FROM t_trials"),
            "ok": ("trials", "SELECT count(*) FILTER (status = 'ok') AS n FROM t_trials"),
        }
        return {
            name: book.ask(Sql(text, []))[0]["n"] if book.has(table) else None
            for name, (table, text) in asked.items()
        }

    return book.once("size", make)


DOCUMENTS = {"overview": overview, "floors": floors}
"""name -> what makes it, of those that are the same for every visitor"""
