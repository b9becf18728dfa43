"""The white-box part of a study: every matched feature's direction pushed in a target, at one dose.

Sentences of a category are read out in all categories; an arm's features are compared with the matched
features of the category that are neither target features nor interferers in either source (`neither`).
`neither` itself is described, not tested: it is the reference.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store import io
from polysem.store.tables import TRANSFER_STEERED
from polysem.targets import LocalTarget, Prompt
from polysem.transfer.arms import matched_arms
from polysem.transfer.config import TargetConfig
from polysem.transfer.directions import (
    Directions,
    Triples,
    directions_of,
    find_triples,
    see_target,
    strata,
    stratified_test,
)
from polysem.transfer.paper import holm
from polysem.transfer.prepare import Prepared, leakage_of
from polysem.transfer.steering import steer

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.saes.base import SAE
else:
    HFModel = SAE = Any

log = logging.getLogger(__name__)

COMPARED = ("target", "shared", "source_only")
REFERENCE = "neither"


@dataclass(frozen=True)
class WhiteBox:
    """A target's inside, and the directions that are tried in it."""

    name: str
    target: LocalTarget
    sae: SAE
    triples: Triples
    directions: tuple[Directions, ...]

    @property
    def model(self) -> HFModel:
        return self.target.model  # pyright: ignore[reportReturnType]  (open_white_box loads nothing else)


def open_white_box(
    prepared: Prepared, config: TargetConfig, target: LocalTarget, *, reporter: Reporter = SILENT
) -> WhiteBox:
    """Match the target's features to both sources', and make their directions.

    Raises:
        PolysemError: of the SAE, or ConfigError if no feature is matched to both sources.
    """
    from polysem.saes import load_sae

    model: Any = target.model
    sae = load_sae(str(config.sae), model=model, max_fvu=config.max_fvu)
    seen = see_target(prepared, model, sae, name=config.name, reporter=reporter)
    triples = find_triples(prepared, seen)
    found = tuple(directions_of(kind, triples, seen, model, sae) for kind in prepared.study.directions.kinds)
    return WhiteBox(config.name, target, sae, triples, found)


def steered_table(
    prepared: Prepared, box: WhiteBox, *, folder: Path, reporter: Reporter = SILENT
) -> pa.Table:
    """TRANSFER_STEERED of a target; a finished part is read from its file."""
    parts = []
    for directions in box.directions:
        for category in prepared.categories.names:
            path = folder / f"{_fingerprint(prepared, box, directions, category)}.parquet"
            parts.append(_part(prepared, box, directions, category, path=path, reporter=reporter))
    return TRANSFER_STEERED.conform(pa.concat_tables(parts))


def _part(
    prepared: Prepared,
    box: WhiteBox,
    directions: Directions,
    category: str,
    *,
    path: Path,
    reporter: Reporter,
) -> pa.Table:
    if path.is_file():
        try:
            return io.read_table(path, TRANSFER_STEERED, rebuild="run the same command again")
        except StoreError as error:
            log.warning("made again: %s", error)
    target, names = box.target, prepared.categories.names
    inside = prepared.categories.inside(target.vocabulary, word_start=True)
    sentences = prepared.sentences[category][: prepared.study.directions.n_sentences]
    rows: list[dict[str, object]] = []
    label = f"{box.name} {category} {directions.kind}"
    for number in reporter.track(range(len(sentences)), total=len(sentences), label=label):
        pushed = steer(
            target.model,
            target.tokens(Prompt(sentences[number])),
            site=box.sae.site,
            directions=directions.vectors,
            inside=inside,
            kl=prepared.study.directions.kl,
        )
        for k, row in enumerate(directions.rows.tolist()):
            rows.append(
                {
                    "target": box.name, "kind": directions.kind, "category": category, "sentence": number,
                    "feature": int(box.triples.feature[row]), "place": int(box.triples.place[row]),
                    "strength": float(pushed.strength[k]),
                    "kl": float(pushed.kl[k]) if np.isfinite(pushed.kl[k]) else None,
                    "reached": bool(pushed.reached[k]), "categories": list(names),
                    "logodds": pushed.log_odds[k].tolist(),
                }
            )  # fmt: skip
    table = TRANSFER_STEERED.conform(pa.Table.from_pylist(rows, schema=TRANSFER_STEERED.arrow()))
    io.write_table(path, table, TRANSFER_STEERED)
    return table


def _fingerprint(prepared: Prepared, box: WhiteBox, directions: Directions, category: str) -> str:
    study = prepared.study
    return short_hash(
        TRANSFER_STEERED.version, box.target.fingerprint, box.sae.provenance.ref, box.sae.provenance.revision,
        [s.revision for s in prepared.sources], study.corpus.model_dump_json(), study.shared.model_dump_json(),
        study.directions.model_dump_json(), box.name, directions.kind, category,
        {name: sorted(words) for name, words in prepared.categories.words.items()},
        prepared.sentences[category], digits=32,
    )  # fmt: skip


def direction_rows(prepared: Prepared, box: WhiteBox, steered: pa.Table) -> list[dict[str, object]]:
    """Rows of TRANSFER_DIRECTIONS of a target."""
    found: list[dict[str, object]] = []
    for directions in box.directions:
        for contrast in ("logodds", "specific") if len(prepared.categories.names) > 1 else ("logodds",):
            for arm in (*COMPARED, REFERENCE):
                rows = [
                    _row(prepared, box, directions, steered, arm=arm, category=category, contrast=contrast)
                    for category in prepared.categories.names
                ]
                tested = [row for row in rows if row["p"] is not None]
                for row, p in zip(tested, holm([float(str(row["p"])) for row in tested]), strict=True):
                    row["p_adj"] = p
                found += rows
    return found


def _row(
    prepared: Prepared,
    box: WhiteBox,
    directions: Directions,
    steered: pa.Table,
    *,
    arm: str,
    category: str,
    contrast: str,
) -> dict[str, object]:
    study = prepared.study
    values = feature_effects(
        steered, prepared, box, kind=directions.kind, category=category, contrast=contrast
    )
    members = members_of(prepared, box, category)
    known = ~np.isnan(values)
    ours, reference = (np.isin(np.arange(len(values)), members[a]) for a in (arm, REFERENCE))
    row: dict[str, object] = {
        "target": box.name, "kind": directions.kind, "contrast": contrast, "arm": arm, "category": category,
        "treated": float(values[ours & known].mean()) if (ours & known).any() else None,
        "estimate": None, "lo": None, "hi": None, "level": study.test.level, "p": None, "p_adj": None,
        "kl": study.directions.kl, "n_sentences": len(prepared.sentences[category][: study.directions.n_sentences]),
        "n_treated": int((ours & known).sum()), "n_reference": 0, "n_alone": 0, "n_refused": int((ours & ~known).sum()),
    }  # fmt: skip
    if arm == REFERENCE:
        return row
    at = np.flatnonzero((ours | reference) & known)
    if not ours[at].any() or ours[at].all():
        return row
    leakage = _leakage(prepared, box, category)
    test = stratified_test(
        values[at],
        ours[at],
        strata(box.triples.frequency[at], leakage[at]),
        level=study.test.level,
        rng=rng_for(study.seed, "directions", box.name, directions.kind, contrast, arm, category),
    )
    shown = {"treated": test.treated, "estimate": test.estimate, "lo": test.lo, "hi": test.hi, "p": test.p}
    return row | {k: v if np.isfinite(v) else None for k, v in shown.items()} | {
        "n_treated": test.n_treated, "n_reference": test.n_reference, "n_alone": test.n_alone,
    }  # fmt: skip


def members_of(prepared: Prepared, box: WhiteBox, category: str) -> dict[str, np.ndarray]:
    """By arm, which triples are of it."""
    arms = matched_arms(category, prepared.categories, prepared.structure)
    return {arm: np.flatnonzero(np.isin(box.triples.place, places)) for arm, places in arms.items()}


def feature_effects(
    steered: pa.Table, prepared: Prepared, box: WhiteBox, *, kind: str, category: str, contrast: str
) -> Float[np.ndarray, " triples"]:
    """Mean over a category's sentences of each triple's effect on it (nats); `specific` less the mean of its
    effects on the other categories; NaN where no sentence took the dose."""
    import pyarrow.compute as pc

    mask = pc.and_(pc.equal(steered["kind"], kind), pc.equal(steered["category"], category))
    part = steered.filter(pc.and_(mask, steered["reached"]))
    names = list(prepared.categories.names)
    own = names.index(category)
    effects = np.array(part["logodds"].to_pylist(), dtype=np.float64).reshape(part.num_rows, len(names))
    values = effects[:, own]
    if contrast == "specific":
        values = values - np.delete(effects, own, axis=1).mean(axis=1)
    index = {int(f): n for n, f in enumerate(box.triples.feature.tolist())}
    at = np.array([index[f] for f in part["feature"].to_pylist()], dtype=np.int64)
    total, count = np.zeros(len(index)), np.zeros(len(index))
    np.add.at(total, at, values)
    np.add.at(count, at, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _leakage(prepared: Prepared, box: WhiteBox, category: str) -> Float[np.ndarray, " triples"]:
    """Mean over the strings of both sources' features of their cosine with the category's words."""
    of_string = leakage_of(prepared, category)
    matching = prepared.structure.matching
    return np.array([_mean(of_string, _strings(prepared, matching, m)) for m in box.triples.place.tolist()])


def _strings(prepared: Prepared, matching: Any, place: int) -> Sequence[str]:
    first, second = prepared.structure.strings
    return (*first[int(matching.a[place])], *second[int(matching.b[place])])


def _mean(of_string: Mapping[str, float], strings: Sequence[str]) -> float:
    known = [of_string[t] for t in strings if t in of_string]
    return float(np.mean(known)) if known else 0.0
