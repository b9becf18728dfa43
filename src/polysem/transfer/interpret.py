"""Language models on a finished study: are its pairs related, which is more so, what does a feature mean?

    RUN/judge/annotations.parquet      every pair, every judge
    RUN/judge/judgements.parquet       shares, kappa, forced choice
    RUN/explain/written_glosses.parquet      glosses with detection scores
    RUN/explain/SAE/EXPLAINER.jsonl    glosses, which a study reads as `file:RUN/explain/SAE`

Responses are kept below RUN/panel. A matched pair of the forced choice has the
same SAE and, within the tolerance, the same gloss similarity, and is not in the map of pairs: its
|interference| is below the map's threshold.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.http import Retries
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.store import RunFolder
from polysem.store.tables import JUDGED, JUDGEMENTS, WRITTEN_GLOSSES
from polysem.transfer.explainer import (
    ExplainedContext,
    detection,
    detection_questions,
    explain,
    explain_question,
)
from polysem.transfer.judges import (
    ATTEMPTS,
    Annotation,
    Proportion,
    annotate,
    choice_questions,
    cohen_kappa,
    forced_choice,
    messages_of,
    proportion,
    related_questions,
)
from polysem.transfer.panel import JudgePanel, Member

Say = Callable[[str], None]
Row = dict[str, Any]
JUDGE, EXPLAIN, RESPONSES = "judge", "explain", "panel"
REPLY_TOKENS = 60
DRAWS = 200
"""random pairs among which a matched one is looked for"""


_UNUSABLE = (
    f"none of its {ATTEMPTS} replies was the JSON object that was asked for; take a model that can write it"
)


class Pair(NamedTuple):
    """Two features of one SAE, glossed."""

    sae: str
    i: int
    j: int
    glosses: tuple[str, str]
    similarity: float


def judge_pairs(
    run: RunFolder,
    panel: JudgePanel,
    *,
    say: Say,
    estimate_only: bool = False,
    retries: Retries | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, pa.Table] | None:
    """What every judge says of pairs of a study, and which it chooses: tables by name; None if only the cost is said.

    Raises:
        StoreError: the stages features and pairs are not finished.
        ConfigError: no such pair, or a budget that is too small.
        PolysemError: of servers; what was answered is kept.
    """
    pairs, trials = chosen_pairs(run.root, panel)
    questions = [q for p in pairs for q in related_questions(p.glosses)]
    questions += [q for high, low in trials for q in choice_questions(high.glosses, low.glosses)]
    ahead = [messages_of(q) for q in questions]
    members = [Member(config, run.root / RESPONSES, retries=retries) for config in panel.judges]
    for member in members:
        say(member.announce(ahead, max_tokens=REPLY_TOKENS))
    if estimate_only:
        return None
    views: dict[str, Annotation] = {}
    choices: dict[str, Proportion] = {}
    for member in members:
        ask = member.ask(ahead, max_tokens=REPLY_TOKENS, reporter=reporter)
        views[member.name] = annotate([p.glosses for p in pairs], ask)
        choices[member.name] = forced_choice(
            [(h.glosses, m.glosses) for h, m in trials], ask, level=panel.level
        )
        if missing := views[member.name].n_missing:
            say(f"{member.name}: {missing} of {len(pairs)} pairs have no answer: {_UNUSABLE}")
    rows = [
        {"sae": p.sae, "i": p.i, "j": p.j, "judge": name, "similarity": p.similarity,
         "related": float(v)}
        for name, view in views.items() for p, v in zip(pairs, view.related.tolist(), strict=True)
    ]  # fmt: skip
    found = [*_shares(panel, views), *_agreement(panel, views)]
    found += [_row("forced choice", name, share, panel) for name, share in choices.items()]
    return {"annotations": JUDGED.of_rows(rows), "judgements": JUDGEMENTS.of_rows(found)}


def chosen_pairs(run: Path, panel: JudgePanel) -> tuple[list[Pair], list[tuple[Pair, Pair]]]:
    """Pairs to annotate, and pairs with a matched one each, drawn by the panel's seed.

    Raises:
        ConfigError: if the map holds no such pair.
    """
    folder = RunFolder.open(run)
    rows = folder.table("pairs").to_pylist()
    wanted = panel.pairs
    known = {(r["sae"], r["feature"]): r["gloss"] for r in folder.table("features").to_pylist() if r["gloss"]}
    high = [
        Pair(r["sae"], r["i"], r["j"], (known[r["sae"], r["i"]], known[r["sae"], r["j"]]), r["similarity"])
        for r in rows
        if r["interference"] >= wanted.min_interference and r["similarity"] is not None and not r["is_duplicate"]
        and r["similarity"] < wanted.max_similarity and (r["sae"], r["i"]) in known and (r["sae"], r["j"]) in known
    ]  # fmt: skip
    if not high:
        raise ConfigError(
            f"{run}: none of {len(rows)} pairs has interference >= {wanted.min_interference} and gloss similarity < "
            f"{wanted.max_similarity}, two glosses and no sign of being one concept twice",
            hint="lower pairs.min_interference or raise pairs.max_similarity in the panel",
        )
    order = rng_for(panel.seed, "panel", "pairs").permutation(len(high)).tolist()
    matched = _Matches(folder, {(r["sae"], r["i"], r["j"]) for r in rows}, known, wanted.tolerance)
    trials: list[tuple[Pair, Pair]] = []
    for k in order:
        if len(trials) == wanted.n_choices:
            break
        other = matched.of(
            high[k], rng_for(panel.seed, "panel", "matched", high[k].sae, high[k].i, high[k].j)
        )
        if other is not None:
            trials.append((high[k], other))
    return [high[k] for k in sorted(order[: wanted.n])], trials


class _Matches:
    """Finds pairs of like gloss similarity that are not in the map of pairs."""

    def __init__(
        self,
        folder: RunFolder,
        mapped: set[tuple[str, int, int]],
        known: dict[tuple[str, int], str],
        tolerance: float,
    ):
        self._mapped, self._known, self._tolerance = mapped, known, tolerance
        self._most = folder.study().pairs.max_similarity
        features = folder.table("features", columns=["sae", "feature"]).to_pylist()
        self._vectors: dict[str, np.ndarray] = {}
        self._ids: dict[str, list[int]] = {}
        for sae, vectors in folder.embeddings().items():
            self._vectors[sae] = vectors
            self._ids[sae] = [r["feature"] for r in features if r["sae"] == sae]

    def of(self, pair: Pair, rng: np.random.Generator) -> Pair | None:
        """A matched pair; None if none of DRAWS is one."""
        ids, vectors = self._ids[pair.sae], self._vectors[pair.sae]
        for a, b in rng.integers(0, len(ids), (DRAWS, 2)).tolist():
            i, j = sorted((ids[a], ids[b]))
            texts = self._known.get((pair.sae, i)), self._known.get((pair.sae, j))
            if i == j or None in texts or (pair.sae, i, j) in self._mapped:
                continue
            similarity = float(vectors[a].astype(np.float64) @ vectors[b])
            # Beyond the map's own limit of similarity a pair may interfere and still not be in the map.
            if similarity < self._most and abs(similarity - pair.similarity) <= self._tolerance:
                return Pair(pair.sae, i, j, (str(texts[0]), str(texts[1])), similarity)
        return None


def _shares(panel: JudgePanel, views: dict[str, Annotation]) -> list[Row]:
    found = []
    for name, view in views.items():
        known = view.related[~np.isnan(view.related)]
        share = proportion(int((known == 1).sum()), len(known), level=panel.level, n_missing=view.n_missing)
        found.append(_row("related", name, share, panel, n_inconsistent=view.n_inconsistent))
    return found


def _agreement(panel: JudgePanel, views: dict[str, Annotation]) -> list[Row]:
    found = []
    for a, b in itertools.combinations(views, 2):
        rng = rng_for(panel.seed, "panel", "kappa", a, b)
        k = cohen_kappa(views[a].related, views[b].related, level=panel.level, rng=rng)
        found.append(
            {
                "measure": "kappa", "judge": a, "other": b, "estimate": k.kappa, "lo": k.lo,
                "hi": k.hi, "p": None, "agreement": k.agreement, "n": k.n,
                "n_missing": len(views[a].related) - k.n, "n_inconsistent": None, "level": panel.level,
            }
        )  # fmt: skip
    return found


def _row(
    measure: str,
    judge: str,
    share: Proportion,
    panel: JudgePanel,
    *,
    n_inconsistent: int | None = None,
) -> Row:
    # For annotations one half means nothing, so no p value against it is given.
    p = share.p if measure == "forced choice" else None
    return {
        "measure": measure, "judge": judge, "other": "", "estimate": share.share, "lo": share.lo,
        "hi": share.hi, "p": p, "agreement": None, "n": share.n, "n_missing": share.n_missing,
        "n_inconsistent": n_inconsistent, "level": panel.level,
    }  # fmt: skip


def explain_features(
    run: RunFolder,
    panel: JudgePanel,
    *,
    say: Say,
    estimate_only: bool = False,
    retries: Retries | None = None,
    reporter: Reporter = SILENT,
) -> pa.Table | None:
    """WRITTEN_GLOSSES: every model of the panel writes glosses of features and another scores them; None if only the
    cost is said.

    Raises:
        StoreError: the stage features is not finished.
        ConfigError: no feature with enough contexts, or a budget that is too small.
        PolysemError: of servers; what was answered is kept.
    """
    chosen, everything = chosen_features(run.root, panel)
    members = [Member(config, run.root / RESPONSES, retries=retries) for config in panel.judges]
    ahead = [messages_of(explain_question(_shown(rows, panel))) for rows in chosen.values()]
    scoring = len(chosen) * 2 * panel.features.n_scored
    for member in members:
        said = member.announce(ahead, max_tokens=REPLY_TOKENS)
        say(f"{said}; then up to {scoring} questions to score glosses")
    if estimate_only:
        return None
    rows: list[Row] = []
    for n, member in enumerate(members):
        ask = member.ask(ahead, max_tokens=REPLY_TOKENS, reporter=reporter)
        glosses = {key: explain(_shown(found, panel), ask) for key, found in chosen.items()}
        if none := sum(gloss is None for gloss in glosses.values()):
            say(f"{member.name}: {none} of {len(glosses)} features have no gloss: {_UNUSABLE}")
        judge = members[(n + 1) % len(members)]
        rows += _scored(panel, member.name, glosses, chosen, everything, judge, reporter)
    return WRITTEN_GLOSSES.of_rows(rows)


Key = tuple[str, int]


def chosen_features(run: Path, panel: JudgePanel) -> tuple[dict[Key, list[Row]], list[Row]]:
    """Contexts of the features to explain, best first, and the contexts of all features.

    Raises:
        ConfigError: if no feature has a context of either kind.
    """
    everything = RunFolder.open(run).table("contexts").to_pylist()
    by_feature: dict[Key, list[Row]] = {}
    for row in everything:
        by_feature.setdefault((row["sae"], row["feature"]), []).append(row)
    able = sorted(key for key, rows in by_feature.items() if len(rows) >= 2)
    if not able:
        raise ConfigError(
            f"{run}: no feature has two contexts, one to write a gloss from and one to score it on",
            hint="raise features.n_contexts in the study, then: polysem features STUDY.toml",
        )
    order = rng_for(panel.seed, "panel", "features").permutation(len(able))[: panel.features.n].tolist()
    return {able[k]: by_feature[able[k]] for k in sorted(order)}, everything


def _shown(rows: Sequence[Row], panel: JudgePanel) -> list[ExplainedContext]:
    return [_context(row) for row in rows[0::2][: panel.features.n_shown]]


def _context(row: Row) -> ExplainedContext:
    return ExplainedContext(tuple(row["tokens"]), tuple(row["values"]))


def _scored(
    panel: JudgePanel,
    explainer: str,
    glosses: dict[Key, str | None],
    chosen: dict[Key, list[Row]],
    everything: list[Row],
    judge: Member,
    reporter: Reporter,
) -> list[Row]:
    """Rows of WRITTEN_GLOSSES: each gloss scored by the next model of the panel, by itself where it is alone."""
    cases = {key: _cases(panel, key, chosen[key], everything) for key, gloss in glosses.items() if gloss}
    ahead = [
        messages_of(q)
        for key, (active, silent) in cases.items()
        for q in detection_questions(str(glosses[key]), [*active, *silent])
    ]
    ask = judge.ask(ahead, max_tokens=REPLY_TOKENS, reporter=reporter)
    found: list[Row] = []
    for (sae, feature), gloss in glosses.items():
        row: Row = {
            "sae": sae,
            "feature": feature,
            "explainer": explainer,
            "judge": judge.name,
            "gloss": gloss,
        }
        row |= {"detection": None, "lo": None, "hi": None, "n": 0, "n_missing": 0, "level": panel.level}
        active, silent = cases.get((sae, feature), ([], []))
        if gloss and active and silent:
            rng = rng_for(panel.seed, "panel", "detection", explainer, sae, feature)
            d = detection(gloss, active, silent, ask, rng=rng, level=panel.level)
            row |= {
                "detection": d.share,
                "lo": d.lo,
                "hi": d.hi,
                "n": d.n,
                "n_missing": d.n_missing,
            }
        found.append(row)
    return found


def _cases(
    panel: JudgePanel, key: Key, rows: list[Row], everything: list[Row]
) -> tuple[list[ExplainedContext], list[ExplainedContext]]:
    """Contexts of odd rank, and as many of other features of the SAE from places where this one's are not."""
    active = [_context(row) for row in rows[1::2][: panel.features.n_scored]]
    places = {row["source"] for row in rows}
    others = [
        r for r in everything if r["sae"] == key[0] and r["feature"] != key[1] and r["source"] not in places
    ]
    rng = rng_for(panel.seed, "panel", "silent", key[0], key[1])
    order = rng.permutation(len(others))[: len(active)].tolist()
    return active, [_context(others[k]) for k in order]


def gloss_files(table: pa.Table) -> dict[str, str]:
    """Of WRITTEN_GLOSSES, SAE/EXPLAINER.jsonl -> content: a folder of these a study reads as `file:FOLDER/SAE`."""
    files: dict[str, list[str]] = {}
    for row in table.to_pylist():
        if row["gloss"]:
            line = {name: row[name] for name in ("feature", "gloss", "explainer")}
            file = files.setdefault(f"{row['sae']}/{row['explainer']}.jsonl", [])
            file.append(json.dumps(line, ensure_ascii=False))
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items()}


def mean_detection(
    rows: Sequence[Mapping[str, Any]], *, level: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """(mean, lo, hi) of detection over features; the interval resamples features."""
    values: Float[np.ndarray, " n"] = np.array([r["detection"] for r in rows if r["detection"] is not None])
    if not len(values):
        return math.nan, math.nan, math.nan
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(axis=1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(lo), float(hi)
