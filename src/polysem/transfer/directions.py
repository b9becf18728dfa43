"""Directions as interventions to transfer, into a target whose inside is at hand and that has its own SAE.

    feature    decoder row of the target's feature that both sources' matched features are matched to
    gradient   token gradient of that feature's pre-activation in the target (arXiv 2505.11611, section 3.4,
               with the feature's own encoder as probe), in float32 and float64, refused where they disagree

A feature takes part if it is the mutual nearest neighbour of either source's feature of one matched pair: a
triple. Its arm is that pair's (`arms.matched_arms`), so a shared interferer's direction is tested against
directions of matched features that interfere with no target feature (`neither`, which is described and not tested).
Every direction is steered at one dose in the sentences of a category, and read out in all categories. The unit is the
feature; labels are permuted inside strata of firing frequency and leakage (cosine of its strings with the category's
words). Over categories: Holm.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.positions import positions_of
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.stats.multiple import adjust_p
from polysem.stats.units import cell_means, stratified_test
from polysem.store.tables import TRANSFER_STEERED
from polysem.targets import LocalTarget, TargetPrompt
from polysem.transfer.arms import matched_arms
from polysem.transfer.ask import kept_part
from polysem.transfer.config import TargetConfig
from polysem.transfer.matching import match_sources, n_active
from polysem.transfer.prepare import PreparedTransfer, leakage_of
from polysem.transfer.source import SourceModel, matched_rows, see
from polysem.transfer.steering import steer

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.saes.base import SAE
else:
    HFModel = SAE = Any

Row = dict[str, object]

CONTEXT = 16
"""tokens up to and with the peak, of which a token gradient is taken"""
LEVELS = 3
"""levels of frequency, and of leakage, inside which labels are permuted"""
REFERENCE = "neither"
COMPARED = ("target", "shared", "source_only")


@dataclass(frozen=True)
class Triples:
    """Features of a target that both sources have."""

    place: Int[np.ndarray, " n"]
    """in the matching of the sources"""
    feature: Int[np.ndarray, " n"]
    """of the target's SAE"""
    frequency: Float[np.ndarray, " n"]
    """log of the tokens on which it fires"""

    def means(self, table: pa.Table, values: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " n"]:
        """Mean of the values of each triple over its rows of TRANSFER_STEERED; NaN without any."""
        index = {int(f): n for n, f in enumerate(self.feature.tolist())}
        at = np.array([index[f] for f in table["feature"].to_pylist()], dtype=np.int64)
        return cell_means(values, (at,), shape=(len(index),))


@dataclass(frozen=True)
class Directions:
    """Unit directions of one kind; those that could not be made are left out and counted."""

    kind: str
    """of TRANSFER_DIRECTIONS"""
    rows: Int[np.ndarray, " k"]
    """places in the triples"""
    vectors: Float[np.ndarray, "k d"]
    refused: dict[str, int]
    """reason -> features"""


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
    prepared: PreparedTransfer, config: TargetConfig, target: LocalTarget, *, reporter: Reporter = SILENT
) -> WhiteBox:
    """Match the target's features to both sources', on the text on which those were matched, and make their directions.

    Raises:
        PolysemError: of the SAE, or ConfigError if no feature is matched to both sources.
    """
    from polysem.saes import load_sae

    model: Any = target.model
    sae = load_sae(
        str(config.sae), model=model, max_fvu=config.max_fvu, allow_other_model=config.allow_other_model
    )
    seen = see(model, sae, matched_rows(prepared.study), name=config.name, reporter=reporter)
    triples = find_triples(prepared, seen)
    found = tuple(directions_of(kind, triples, seen, model, sae) for kind in prepared.study.directions.kinds)
    return WhiteBox(config.name, target, sae, triples, found)


def find_triples(prepared: PreparedTransfer, target: SourceModel) -> Triples:
    """Features of the target that are matched to both features of a matched pair.

    Raises:
        ConfigError: if there are none.
    """
    shared, matching = prepared.study.shared, prepared.structure.matching
    partner = []
    for source in prepared.sources:
        found = match_sources(source, target, min_r=shared.min_r, min_active=shared.min_active)
        partner.append(dict(zip(found.a.tolist(), found.b.tolist(), strict=True)))
    both = [
        (m, partner[0][a])
        for m, (a, b) in enumerate(zip(matching.a.tolist(), matching.b.tolist(), strict=True))
        if a in partner[0] and partner[0][a] == partner[1].get(b)
    ]
    if not both:
        raise ConfigError(
            f"no feature of {target.name} is matched to both sources (r >= {shared.min_r})",
            hint="lower shared.min_r, read a longer corpus, or leave the target's sae out",
        )
    place, feature = (np.array(column, dtype=np.int64) for column in zip(*both, strict=True))
    fires = n_active(target.acts)[feature]
    return Triples(place, feature, np.log(np.maximum(fires, 1)))


def directions_of(kind: str, triples: Triples, target: SourceModel, model: HFModel, sae: SAE) -> Directions:
    """The directions of all triples."""
    if kind == "feature":
        vectors = target.directions[triples.feature]
        dead = ~(np.linalg.norm(vectors, axis=1) > 0)
        refused = {"zero_direction": int(dead.sum())} if dead.any() else {}
        return Directions(kind, np.flatnonzero(~dead), unit_rows(vectors[~dead]), refused)
    # The token on which each feature is most active; the first of equals.
    peaks = np.asarray(target.acts[:, triples.feature].tocsc().argmax(axis=0)).ravel().tolist()
    made = [
        _gradient(model, sae, target, feature, peak)
        for feature, peak in zip(triples.feature.tolist(), peaks, strict=True)
    ]
    rows = [n for n, found in enumerate(made) if not isinstance(found, str)]
    vectors = np.array([made[n] for n in rows]).reshape(len(rows), model.spec.d_model)
    refused = Counter(sorted(found for found in made if isinstance(found, str)))
    return Directions(kind, np.array(rows, dtype=np.int64), vectors, dict(refused))


def _gradient(model: HFModel, sae: SAE, target: SourceModel, feature: int, peak: int) -> np.ndarray | str:
    """The token gradient, or the reason why there is none."""
    import torch

    from polysem.act.base import Refused, SiteContext
    from polysem.act.gradient import guarded_gradient

    ids = positions_of(model, sae).row(target.tokens[max(0, peak - CONTEXT + 1) : peak + 1].tolist())
    if sae.d_in != model.spec.d_model:
        return "other_width"
    bench = SiteContext(
        label=target.name, sae=sae, spec=model.spec, activations=lambda: np.empty((0, sae.d_in)), model=model
    )
    tokens = torch.tensor([ids], device=model.spec.device)
    try:
        return guarded_gradient(model, tokens, bench, [len(ids) - 1], sae.W_enc[:, feature].detach().double())
    except Refused as error:
        return error.reason


def steered_table(
    prepared: PreparedTransfer, box: WhiteBox, *, folder: Path, reporter: Reporter = SILENT
) -> pa.Table:
    """TRANSFER_STEERED of a target; a finished part is read from its file."""
    study = prepared.study
    parts = []
    for directions in box.directions:
        for category in prepared.categories.names:
            name = short_hash(
                TRANSFER_STEERED.version, box.target.fingerprint, box.sae.provenance.ref, box.sae.provenance.revision,
                [s.revision for s in prepared.sources], study.corpus.model_dump_json(), study.shared.model_dump_json(),
                study.directions.model_dump_json(), box.name, directions.kind, category,
                {name: sorted(words) for name, words in prepared.categories.words.items()},
                prepared.sentences[category], digits=32,
            )  # fmt: skip
            rows = partial(_steered, prepared, box, directions, category, reporter)
            parts.append(kept_part(folder / f"{name}.parquet", TRANSFER_STEERED, rows))
    return TRANSFER_STEERED.conform(pa.concat_tables(parts))


def _steered(
    prepared: PreparedTransfer, box: WhiteBox, directions: Directions, category: str, reporter: Reporter
) -> list[Row]:
    """Rows of TRANSFER_STEERED of one kind and the sentences of one category."""
    target, names = box.target, prepared.categories.names
    inside = prepared.categories.inside(target.vocabulary, word_start=True)
    sentences = prepared.sentences[category][: prepared.study.directions.n_sentences]
    rows: list[Row] = []
    label = f"{box.name} {category} {directions.kind}"
    for number in reporter.track(range(len(sentences)), total=len(sentences), label=label):
        moved = steer(
            target.model,
            target.tokens(TargetPrompt(sentences[number])),
            site=box.sae.writes,
            directions=directions.vectors,
            inside=inside,
            kl=prepared.study.directions.kl,
        )
        rows += [
            {
                "target": box.name, "kind": directions.kind, "category": category, "sentence": number,
                "feature": int(box.triples.feature[row]), "place": int(box.triples.place[row]),
                "strength": float(moved.strength[k]), "kl": float(moved.kl[k]), "reached": bool(moved.reached[k]),
                "categories": list(names), "logodds": moved.log_odds[k].tolist(),
            }
            for k, row in enumerate(directions.rows.tolist())
        ]  # fmt: skip
    return rows


def direction_rows(prepared: PreparedTransfer, box: WhiteBox, steered: pa.Table) -> list[Row]:
    """Rows of TRANSFER_DIRECTIONS of a target."""
    names = prepared.categories.names
    found: list[Row] = []
    for kind in (directions.kind for directions in box.directions):
        for contrast in ("logodds", "specific") if len(names) > 1 else ("logodds",):
            for arm in (*COMPARED, REFERENCE):
                rows = [_effect(prepared, box, steered, kind, contrast, arm, c) for c in names]
                tested = [row for row in rows if "p" in row]
                p = np.array([row["p"] for row in tested], dtype=np.float64)
                for row, adjusted in zip(tested, adjust_p(p, method="holm").tolist(), strict=True):
                    row["p_adj"] = adjusted
                found += rows
    return found


def _effect(
    prepared: PreparedTransfer,
    box: WhiteBox,
    steered: pa.Table,
    kind: str,
    contrast: str,
    arm: str,
    category: str,
) -> Row:
    study = prepared.study
    values = feature_effects(steered, prepared, box, kind=kind, category=category, contrast=contrast)
    members = members_of(prepared, box, category)
    known = ~np.isnan(values)
    ours, reference = (np.isin(np.arange(len(values)), members[a]) for a in (arm, REFERENCE))
    row: Row = {
        "target": box.name, "kind": kind, "contrast": contrast, "arm": arm, "category": category,
        "level": study.test.level, "kl": study.directions.kl,
        "n_sentences": len(prepared.sentences[category][: study.directions.n_sentences]),
        "n_treated": int((ours & known).sum()), "n_reference": 0, "n_alone": 0, "n_refused": int((ours & ~known).sum()),
    }  # fmt: skip
    if (ours & known).any():
        row["treated"] = float(values[ours & known].mean())
    at = np.flatnonzero((ours | reference) & known)
    if arm == REFERENCE or not ours[at].any() or ours[at].all():
        return row
    test = stratified_test(
        values[at],
        ours[at],
        strata(box.triples.frequency[at], _leakage(prepared, box, category)[at]),
        level=study.test.level,
        rng=rng_for(study.seed, "directions", box.name, kind, contrast, arm, category),
    )
    found = vars(test)
    return row | ({k: v for k, v in found.items() if k != "p"} if np.isnan(test.p) else found)


def members_of(prepared: PreparedTransfer, box: WhiteBox, category: str) -> dict[str, np.ndarray]:
    """By arm, which triples are of it."""
    arms = matched_arms(category, prepared.categories, prepared.structure)
    return {arm: np.flatnonzero(np.isin(box.triples.place, places)) for arm, places in arms.items()}


def feature_effects(
    steered: pa.Table, prepared: PreparedTransfer, box: WhiteBox, *, kind: str, category: str, contrast: str
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
    return box.triples.means(part, values)


def strengths(steered: pa.Table, box: WhiteBox, kind: str) -> Float[np.ndarray, " triples"]:
    """Mean strength of each triple over the sentences that took the dose; NaN without any."""
    import pyarrow.compute as pc

    part = steered.filter(pc.and_(pc.equal(steered["kind"], kind), steered["reached"]))
    return box.triples.means(part, part["strength"].to_numpy())


def strata(frequency: Float[np.ndarray, " n"], leakage: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Stratum of each feature: its level of frequency, and of leakage."""
    return LEVELS * _level(frequency) + _level(leakage)


def _level(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    edges = np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _leakage(prepared: PreparedTransfer, box: WhiteBox, category: str) -> Float[np.ndarray, " triples"]:
    """Mean over the strings of both sources' features of their cosine with the category's words."""
    of_string = leakage_of(prepared, category)
    found = []
    for strings in prepared.structure.strings_of(box.triples.place):
        known = [of_string[t] for t in strings if t in of_string]
        found.append(float(np.mean(known)) if known else 0.0)
    return np.array(found)
