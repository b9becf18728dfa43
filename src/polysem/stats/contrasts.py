"""The contrasts of one locus at its headline dose: slopes, means, differences from controls, agreement of
signs.

One row per pair enters every estimate (prompts are averaged before), and every interval is clustered by target, source
and prompt. The regression of record compares pairs inside their targets (a fixed effect of every target, which takes out
its SAE, layer and layer type too) and holds fixed what else a source may do to the target's tokens: gloss similarity, direct
attribution through the unembedding, tokens in common, and how often the source fires.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from polysem.stats.arms import PRIMARY
from polysem.stats.regress import Regression, clustered_ols, tells, within
from polysem.stats.rows import POOLED, SHARE_MARGIN, Row, View, effect_row, links, reach, unit_of
from polysem.vocabulary import COVARIATES, KL, OUTCOMES, RELATIONS, TOKEN_SETS

RECORD = ("interference", "similarity", *COVARIATES)
"""regressors of the slopes of record"""
NEEDED = ("similarity",)
"""pairs that lack it are left out, unless all do; a covariate that some pair lacks is left out itself"""
GEOMETRY = ("cosine_matched", "random_feature")
"""relations whose difference is the geometry effect"""


@runtime_checkable
class Beside(Protocol):
    """Estimates by somebody else's choices, beside those of a study: `polysem.paper` has the paper's."""

    def rows(self, view: View, *, sae: str, tokens: str) -> Iterable[Row]:
        """Rows of EFFECTS."""
        ...

    def tables(self, own: pa.Table, whole: pa.Table, views: Sequence[View]) -> Mapping[str, pa.Table]:
        """Tables of the stage `effects` that are theirs.

        Args:
            own: plan joined with trials, at the study's own strengths.
            whole: the same at all strengths.
            views: the arms of every locus at its headline dose.
        """
        ...


def all_contrasts(view: View, beside: Sequence[Beside] = ()) -> Iterator[Row]:
    """Every row of the effects table for one view."""
    labels = sorted(set(view.columns["sae"].tolist()))
    for sae in [POOLED, *(labels if len(labels) > 1 else [])]:
        for tokens in view.token_sets:
            for outcome in OUTCOMES:
                yield from slopes(view, sae=sae, tokens=tokens, outcome=outcome)
                yield from means(view, sae=sae, tokens=tokens, outcome=outcome)
                yield from differences(view, sae=sae, tokens=tokens, outcome=outcome)
                yield from of_vectors(view, sae=sae, tokens=tokens, outcome=outcome)
                yield sign_agreement(view, sae=sae, tokens=tokens, outcome=outcome)
            yield from null_slopes(view, sae=sae, tokens=tokens)
            for other in beside:
                yield from other.rows(view, sae=sae, tokens=tokens)
            yield from means(view, sae=sae, tokens=tokens, outcome=KL.name)


def slopes(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """The slopes of record, on interference and on similarity, and that on interference without a covariate; all of them
    inside targets."""
    asked = (
        ("slope_interference", "interference", RECORD),
        ("slope_similarity", "similarity", RECORD),
        ("slope_interference_alone", "interference", ("interference",)),
    )
    for contrast, wanted, regressors in asked:
        yield coefficient(
            view,
            contrast,
            view.group(sae=sae, outcome=outcome, tokens=tokens),
            planned=view.where(sae=sae, token_set=tokens, relation="pair"),
            outcome=outcome,
            regressors=regressors,
            wanted=wanted,
            factor="target",
            unit=f"{unit_of(outcome)} per cosine",
        )


def null_slopes(view: View, *, sae: str, tokens: str) -> Iterator[Row]:
    """Slopes that must be nothing: on the cosines of a decoder that was never trained, and on similarities of
    glosses that were dealt out anew. An interval without zero there is an artefact of the procedure (or one study
    in twenty)."""
    outcome = TOKEN_SETS[tokens].outcome
    for name, relation in RELATIONS.items():
        planned = view.where(sae=sae, token_set=tokens, relation=name)
        if relation.role != "null" or not planned.any():
            continue
        yield coefficient(
            view,
            f"null_slope_{relation.null_of}",
            view.group(sae=sae, outcome=outcome, tokens=tokens, relation=name),
            planned=planned,
            outcome=outcome,
            regressors=RECORD,
            wanted=relation.null_of,
            factor="target",
            unit=f"{unit_of(outcome)} per cosine",
            notes=("a negative control: nothing is there to be found",),
        )


def means(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """Mean effect of every relation, and of pairs by interference bin."""
    chosen = view.where(sae=sae, token_set=tokens)
    pairs = chosen & view.where(relation="pair")
    present = sorted(set(view.columns["relation"].tolist()))
    groups = [({"relation": name}, chosen & view.where(relation=name)) for name in present]
    groups += [({"relation": "pair", "bin": index}, mine) for index, mine in bins_of(view, pairs)]
    for parts, planned in groups:
        used = planned & np.isfinite(view.columns[outcome])
        yield effect_row(
            view,
            "mean_effect",
            view.group(sae=sae, outcome=outcome, tokens=tokens, **parts),
            planned=planned,
            used=used,
            regression=view.regress(
                view.columns[outcome][used], np.ones((int(used.sum()), 1)), used, outcome=outcome
            ),
            method="mean over pairs",
            unit=unit_of(outcome),
            margin=_margin(view, outcome),
        )


def differences(view: View, *, sae: str, tokens: str, outcome: str, only: str = "") -> Iterator[Row]:
    """Pairs minus each control that they are compared with, over all bins and by bin, and the geometry effect.

    A control that was drawn for one pair (or neuron) is compared with that pair and no other; several draws for one
    pair are averaged first. All other controls are compared inside the same targets: effect on "is a pair" with a fixed
    effect of every target, which is nested in the clusters and not counted in the small-sample factor. The geometry effect
    is that of the matched controls minus that of random features, inside the same targets: what the angle alone does.

    Args:
        only: the one contrast that is wanted; "" takes all.
    """
    chosen = view.where(sae=sae, token_set=tokens)
    pairs = chosen & view.where(relation="pair")
    parts = {"sae": sae, "outcome": outcome, "tokens": tokens}
    references = (name for name, relation in RELATIONS.items() if relation.role == "reference")
    for control in (name for name in references if only in ("", f"pair_minus_{name}")):
        controls = chosen & view.where(relation=control)
        for index, mine in (("all", pairs), *bins_of(view, pairs)) if controls.any() else ():
            own = controls & _drawn_for(view, mine)
            matched = bool((view.pair_of[controls] >= 0).any())
            a = _each(view, mine, outcome)
            b = _by_pair(view, own, outcome) if matched else _each(view, controls, outcome)
            yield _difference(
                view,
                f"pair_minus_{control}",
                view.group(**parts, bin=index),
                a._replace(stratum=a.pair) if matched else a,
                b._replace(stratum=b.pair) if matched else b,
                planned=mine | (own if matched else controls),
                outcome=outcome,
                inside="pairs" if matched else "targets",
                names=("pairs", "controls"),
            )
    if only not in ("", "geometry_effect"):
        return
    matched, random = (chosen & view.where(relation=name) for name in GEOMETRY)
    for index, mine in (("all", pairs), *bins_of(view, pairs)) if matched.any() and random.any() else ():
        own = matched & _drawn_for(view, mine)
        yield _difference(
            view,
            "geometry_effect",
            view.group(**parts, bin=index),
            _by_pair(view, own, outcome),
            _each(view, random, outcome),
            planned=own | random,
            outcome=outcome,
            inside="targets",
            names=("matched controls", "random features"),
        )


def of_vectors(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """Each of the study's own vectors minus each control, inside the same targets: minus the directions that were drawn at
    its own cosines, and minus the targets' controls."""
    chosen = view.where(sae=sae, token_set=tokens)
    given = chosen & view.where(relation="given")
    names = view.columns["source_name"]
    for name in sorted(set(names[given].tolist())):
        mine = given & (names == name)
        numbers = set(zip(view.columns["sae"][mine], view.columns["source"][mine], strict=True))
        drawn = [key in numbers for key in zip(view.columns["sae"], view.columns["pair_source"], strict=True)]
        for control, relation in RELATIONS.items():
            own = chosen & view.where(relation=control)
            if control == "given_matched":
                own &= np.array(drawn, dtype=bool)
            elif not relation.floor or relation.role != "reference":
                continue
            if own.any():
                yield _difference(
                    view,
                    f"given_minus_{control}",
                    view.group(sae=sae, outcome=outcome, tokens=tokens, vector=name),
                    _each(view, mine, outcome),
                    _each(view, own, outcome),
                    planned=mine | own,
                    outcome=outcome,
                    inside="targets",
                    names=("targets with the vector", "controls"),
                )


class _Compared(NamedTuple):
    """What is compared: an effect per row, and whom it shares its target and its source with."""

    y: Float[np.ndarray, " n"]
    prompts: Float[np.ndarray, "n prompts"]
    clusters: Int[np.ndarray, "n 2"]
    stratum: Int[np.ndarray, " n"]
    """rows are compared inside it"""
    pair: Int[np.ndarray, " n"]
    """row of the pair itself, or that it was drawn for"""
    arms: Int[np.ndarray, " n_arms"]
    """that it rests on"""
    row: Int[np.ndarray, " n_arms"]
    """of every arm, the row above that it entered"""


def _each(view: View, arms: Bool[np.ndarray, " arms"], outcome: str) -> _Compared:
    """A row per arm."""
    rows = np.flatnonzero(arms & np.isfinite(view.columns[outcome]))
    clusters = view.clusters[rows]
    return _Compared(
        view.columns[outcome][rows],
        view.prompts(outcome)[rows],
        clusters,
        clusters[:, 0],
        rows,
        rows,
        np.arange(len(rows)),
    )


def _by_pair(view: View, arms: Bool[np.ndarray, " arms"], outcome: str) -> _Compared:
    """A row per pair that has controls: their mean. It shares the pair's source, whose cosine and common part it has."""
    each = _each(view, arms, outcome)
    pair, code, count = np.unique(view.pair_of[each.arms], return_inverse=True, return_counts=True)
    first = np.unique(code, return_index=True)[1]
    prompts = np.zeros((len(pair), each.prompts.shape[1]))
    np.add.at(prompts, code, each.prompts)
    target = each.clusters[first, 0]
    clusters = np.column_stack([target, view.clusters[pair, 1]])
    y = np.bincount(code, weights=each.y, minlength=len(pair)) / count
    return _Compared(y, prompts / count[:, None], clusters, target, pair, each.arms, code)


def _difference(
    view: View,
    contrast: str,
    group: str,
    a: _Compared,
    b: _Compared,
    *,
    planned: Bool[np.ndarray, " arms"],
    outcome: str,
    inside: str,
    names: tuple[str, str],
) -> Row:
    """a minus b inside strata; strata without both say nothing and are left out."""
    span = int(max(a.stratum.max(initial=-1), b.stratum.max(initial=-1))) + 1
    common = np.all([np.bincount(side.stratum, minlength=span) > 0 for side in (a, b)], axis=0)
    keep = [common[side.stratum] for side in (a, b)]
    y, prompts, clusters, stratum = (
        np.concatenate([getattr(side, name)[k] for side, k in zip((a, b), keep, strict=True)])
        for name in ("y", "prompts", "clusters", "stratum")
    )
    n, m = (int(k.sum()) for k in keep)
    is_a = np.repeat([1.0, 0.0], [n, m])
    effect, design = within(np.column_stack([y, is_a]), stratum).T
    used = np.zeros_like(planned)
    for side, k in zip((a, b), keep, strict=True):
        used[side.arms[k[side.row]]] = True
    return effect_row(
        view,
        contrast,
        group,
        planned=planned,
        used=used,
        regression=clustered_ols(
            effect, design[:, None], clusters, level=view.level, errors=links(clusters), prompts=prompts
        ),
        method=f"difference inside {inside}",
        unit=unit_of(outcome),
        notes=(f"{n} {names[0]} against {m} {names[1]}",),
        margin=_margin(view, outcome),
    )


def _drawn_for(view: View, pairs: Bool[np.ndarray, " arms"]) -> Bool[np.ndarray, " arms"]:
    """Controls that were drawn for one of these pairs."""
    return (view.pair_of >= 0) & pairs[view.pair_of]


def sign_agreement(view: View, *, sae: str, tokens: str, outcome: str) -> Row:
    """Share of pairs whose effect has the sign of their interference, sign against sign; p is against 1/2.

    With P+ the share of positive effects among pairs of positive interference, and P- among those of negative, it is
    the mean of P+ and 1 - P- at equal numbers, 1/2 + (P+ - P-) / 2. The difference is taken inside the same target and
    bin of |interference|, so that neither a target whose effects are all positive nor larger interference on one side
    makes an agreement; where a target has one sign only, there is nothing to compare. An effect of exactly 0 counts
    one half.
    """
    cosine, effect, target = view.columns["interference"], view.columns[outcome], view.clusters[:, 0]
    planned = view.where(sae=sae, token_set=tokens)
    planned &= view.where(relation="pair") | view.where(relation="negative_pair")
    used = planned & np.isfinite(effect) & np.isfinite(cosine) & (cosine != 0)
    bins = view.columns["interference_bin"].astype(np.int64) + 1
    cell = target * (int(bins.max(initial=0)) + 1) + bins
    used &= np.isin(cell, np.intersect1d(cell[used & (cosine > 0)], cell[used & (cosine < 0)]))
    signs = np.column_stack([np.sign(effect[used]), np.sign(cosine[used])]) / 2
    y, x = within(signs, cell[used]).T
    # 1/2 + slope / 2: half the effect, and one half on
    centred = view.regress(y / 2, x[:, None], used).shifted(0.5)
    # t intervals may leave [0, 1], where no share can be.
    regression = replace(centred, lo=np.clip(centred.lo, 0, 1), hi=np.clip(centred.hi, 0, 1))
    agreement = signs[:, 0] * signs[:, 1]
    unanimous = len(agreement) > 1 and bool((np.abs(agreement) == 0.25).all() and np.ptp(agreement) == 0)
    n, m = int((used & (cosine > 0)).sum()), int((used & (cosine < 0)).sum())
    return effect_row(
        view,
        "sign_agreement",
        view.group(sae=sae, outcome=outcome, tokens=tokens),
        planned=planned,
        used=used,
        regression=regression,
        method="sign of effect on sign of interference within target and bin (OLS with fixed effects), as a share; p against 1/2",
        prompts=False,
        unit="share of pairs",
        notes=(
            f"{n} pairs of positive against {m} of negative interference"
            if n
            else "no target has pairs of both signs of interference in one bin",
            *(("the pairs all agree or all disagree",) if unanimous else ()),
        ),
        margin=SHARE_MARGIN,
        null=0.5,
    )


class Fitted(NamedTuple):
    """A regression made ready."""

    rows: Int[np.ndarray, " n"]
    """arms that enter"""
    x: Float[np.ndarray, "n k"]
    """the coefficient that is wanted belongs to column `which`; fixed effects are taken out"""
    which: int
    names: tuple[str, ...]
    """of the regressors that are left"""
    notes: tuple[str, ...]
    reason: str
    """why nothing can be estimated; "" if it can"""


def fitted(
    view: View,
    used: Bool[np.ndarray, " arms"],
    regressors: Sequence[str],
    *,
    wanted: str,
    factor: str | None,
) -> Fitted:
    """The regressors of the arms `used`, inside targets (`factor` = target) or beside dummies of another factor.

    Arms without the wanted regressor or the similarity are left out; any other regressor that is not known for every
    arm, does not vary, or cannot be told apart from those before it is left out itself. All of it is said.
    """
    c = view.columns
    known = {r: np.isfinite(c[r]) if r in c else np.zeros_like(used) for r in regressors}
    needed = [r for r in regressors if r == wanted or (r in NEEDED and (known[r] & used).any())]
    lacking = used & ~np.all([known[r] for r in needed], axis=0)
    used = used & ~lacking
    said = [f"{int(lacking.sum())} pairs without {' or '.join(needed)} are left out"] if lacking.any() else []
    target = view.clusters[:, 0]
    if factor == "target":
        names, count = np.unique(target[used], return_counts=True)
        single = used & np.isin(target, names[count == 1])
        used = used & ~single
        if single.any():
            said.append(f"{int(single.sum())} pairs alone with their target say nothing and are left out")
    rows = np.flatnonzero(used)
    unknown = [r for r in regressors if r != wanted and not known[r][used].all()]
    if unknown and len(rows):
        said.append(f"not known for every pair and left out: {', '.join(unknown)}")
    numbers = {r: c[r][rows].astype(np.float64) for r in regressors if r not in unknown and r in c}
    fixed: list[np.ndarray] = []
    if factor == "target":
        numbers = {r: within(v[:, None], target[rows])[:, 0] for r, v in numbers.items()}
    else:
        levels = sorted(set(c[factor][rows].tolist()))[1:] if factor else []
        fixed = [
            np.ones(len(rows)),
            *((c[factor][rows] == level).astype(np.float64) for level in levels if factor),
        ]
    kept: list[str] = []
    for r in (wanted, *(r for r in regressors if r != wanted)):
        if r not in numbers or (r != wanted and not len(rows)):
            continue
        if tells(numbers[r], [*fixed, *(numbers[k] for k in kept)]):
            kept.append(r)
        elif r != wanted:
            apart = " apart from the others" if tells(numbers[r], []) else ""
            said.append(f"{r} does not vary{apart} and is left out")
    names = tuple(r for r in regressors if r in kept)
    x = (
        np.column_stack([*fixed, *(numbers[r] for r in names)])
        if fixed or names
        else np.empty((len(rows), 0))
    )
    where = " inside targets" if factor == "target" else ""
    reason = "" if wanted in kept or not len(rows) else f"{wanted} does not vary{where}"
    if not len(rows):
        reason = "no pairs with an outcome"
    return Fitted(
        rows, x, len(fixed) + (names.index(wanted) if wanted in names else 0), names, tuple(said), reason
    )


def coefficient(
    view: View,
    contrast: str,
    group: str,
    *,
    planned: Bool[np.ndarray, " arms"],
    outcome: str,
    regressors: tuple[str, ...] = ("interference", "similarity"),
    wanted: str,
    factor: str | None,
    unit: str,
    notes: tuple[str, ...] = (),
) -> Row:
    """One coefficient of outcome ~ regressors, inside targets (`factor` = target) or beside dummies of `factor`; see
    `fitted`."""
    c = view.columns
    made = fitted(view, planned & np.isfinite(c[outcome]), regressors, wanted=wanted, factor=factor)
    used = np.zeros_like(planned)
    used[made.rows] = True
    y = c[outcome][made.rows]
    if factor == "target":
        y = within(y[:, None], view.clusters[made.rows, 0])[:, 0]
    counted = outcome if outcome in view.arms.cell_effect else ""
    regression = (
        Regression.none(1, made.reason) if made.reason else view.regress(y, made.x, used, outcome=counted)
    )
    effects = "fixed effects of targets" if factor == "target" else factor
    formula = " + ".join([*made.names, *([effects] if effects else [])]) or wanted
    return effect_row(
        view,
        contrast,
        group,
        planned=planned,
        used=used,
        regression=regression,
        which=0 if made.reason else made.which,
        method=f"OLS {outcome} ~ {formula}, one row per pair",
        unit=unit,
        notes=(*notes, *made.notes),
        margin=_margin(view, outcome) / reach(c[wanted][used]) if wanted == "interference" else float("nan"),
        prompts=bool(counted),
    )


def _margin(view: View, outcome: str) -> float:
    """The declared margin is in nats of log-odds; other outcomes have none."""
    scale = OUTCOMES[outcome].scale if outcome in OUTCOMES else ""
    return view.margin if PRIMARY in (outcome, scale) else float("nan")


def bins_of(view: View, pairs: Bool[np.ndarray, " arms"]) -> list[tuple[str, Bool[np.ndarray, " arms"]]]:
    """Number and pairs of every bin of interference that holds any, from the lowest."""
    bins = view.columns["interference_bin"]
    return [(str(int(b)), pairs & (bins == b)) for b in np.unique(bins[pairs]) if b >= 0]
