"""The contrasts of one locus at its headline dose: slopes, means, differences from controls, agreement of
signs.

One row per pair enters every estimate (prompts are averaged before), and every interval is two-way clustered
by target and source.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from polysem.stats.arms import OUTCOMES
from polysem.stats.regress import Regression, shifted, within
from polysem.stats.rows import POOLED, SHARE_MARGIN, SLOPE_STEP, UNITS, View, effect_row

CONTROLS = (
    *("random_feature", "random_direction", "isotropic"),
    *("cosine_matched", "high_attribution", "swapped_target", "rotated"),
)
NULLS = (("frozen_decoder", "interference"), ("shuffled_gloss", "similarity"))
"""negative controls and the slope that must be nothing in each"""
Row = dict[str, object]


def all_contrasts(view: View) -> Iterator[Row]:
    """Every row of the effects table for one view."""
    labels = sorted(set(view.columns["sae"].tolist()))
    for sae in [POOLED, *(labels if len(labels) > 1 else [])]:
        for tokens in sorted(set(view.columns["token_set"].tolist())):
            for outcome in OUTCOMES:
                yield from slopes(view, sae=sae, tokens=tokens, outcome=outcome)
                yield from means(view, sae=sae, tokens=tokens, outcome=outcome)
                yield from differences(view, sae=sae, tokens=tokens, outcome=outcome)
                yield sign_agreement(view, sae=sae, tokens=tokens, outcome=outcome)
            yield from null_slopes(view, sae=sae, tokens=tokens)
            yield from paper_models(view, sae=sae, tokens=tokens)
            yield from means(view, sae=sae, tokens=tokens, outcome="kl")


def slopes(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """effect ~ interference + similarity (+ layer type, and once more with a fixed effect of every SAE, where
    SAEs are pooled)."""
    planned = view.where(sae=sae, token_set=tokens, relation="pair")
    group = view.group(sae=sae, outcome=outcome, tokens=tokens)
    fixed: dict[str, str | None] = {"": "layer_type" if sae == POOLED else None}
    if sae == POOLED and len(set(view.columns["sae"])) > len(set(view.columns["layer_type"])):
        fixed["_sae_fixed_effects"] = "sae"
    for suffix, factor in fixed.items():
        for name in ("interference", "similarity"):
            yield _coefficient(
                view,
                f"slope_{name}{suffix}",
                group,
                planned=planned,
                outcome=outcome,
                regressors=("interference", "similarity"),
                wanted=name,
                factor=factor,
                unit=f"{UNITS[outcome]} per cosine",
            )


def null_slopes(view: View, *, sae: str, tokens: str) -> Iterator[Row]:
    """Slopes that must be nothing: on the cosines of a decoder that was never trained, and on similarities of
    glosses that were dealt out anew. An interval without zero there is an artefact of the procedure (or one study
    in twenty)."""
    for relation, name in NULLS:
        planned = view.where(sae=sae, token_set=tokens, relation=relation)
        if not planned.any():
            continue
        yield _coefficient(
            view,
            f"null_slope_{name}",
            view.group(sae=sae, outcome="logodds", tokens=tokens, relation=relation),
            planned=planned,
            outcome="logodds",
            regressors=("interference", "similarity"),
            wanted=name,
            factor="layer_type" if sae == POOLED else None,
            unit="nats per cosine",
            notes=("a negative control: nothing is there to be found",),
        )


def paper_models(view: View, *, sae: str, tokens: str) -> Iterator[Row]:
    """The two regressions of arXiv 2505.11611 (section 4.1 of its protocol) for the weighted cosine c,
    coefficient of interference.

    Model A: c after ~ interference + similarity + c before + layer type. Model B: (c after - c before) / |c
    before| ~ interference + similarity + layer type. As there the push is positive; unlike there the dose is
    fixed, not the best of 32 for each prompt, every pair is one row, and errors are clustered.
    """
    planned = view.where(sae=sae, token_set=tokens, relation="pair")
    group = view.group(sae=sae, outcome="cosine", tokens=tokens)
    models = {
        "paper_model_a": ("c_edit", ("interference", "similarity", "c_base"), "cosine per cosine"),
        "paper_model_b": ("c_relative", ("interference", "similarity"), "relative change per cosine"),
    }
    for name, (outcome, regressors, unit) in models.items():
        yield _coefficient(
            view,
            name,
            group,
            planned=planned,
            outcome=outcome,
            regressors=regressors,
            wanted="interference",
            factor="layer_type" if sae == POOLED else None,
            unit=unit,
            notes=(
                "the paper's regression at one fixed dose (the paper: best of 32 per prompt, unclustered)",
            ),
        )


def means(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """Mean effect of every relation, and of pairs by interference bin."""
    chosen = view.where(sae=sae, token_set=tokens)
    for relation in sorted(set(view.columns["relation"].tolist())):
        planned = chosen & view.where(relation=relation)
        group = view.group(sae=sae, outcome=outcome, tokens=tokens, relation=relation)
        yield _mean(view, "mean_effect", group, planned=planned, outcome=outcome)
    pairs = chosen & view.where(relation="pair")
    for index in _bins(view, pairs):
        group = view.group(sae=sae, outcome=outcome, tokens=tokens, relation="pair", bin=str(index))
        yield _mean(
            view, "mean_effect", group, planned=pairs & view.where(interference_bin=index), outcome=outcome
        )


def differences(view: View, *, sae: str, tokens: str, outcome: str) -> Iterator[Row]:
    """Pairs minus each random control inside the same targets, over all bins and by bin.

    Effect on "is a pair" with a fixed effect of every target: targets without both arms say nothing and are
    left out. The fixed effects are nested in the target clusters and are not counted in the small-sample
    factor.
    """
    chosen = view.where(sae=sae, token_set=tokens)
    pairs = chosen & view.where(relation="pair")
    for control in CONTROLS:
        controls = chosen & view.where(relation=control)
        if not controls.any():
            continue
        for index in ("all", *_bins(view, pairs)):
            mine = pairs if index == "all" else pairs & view.where(interference_bin=index)
            group = view.group(sae=sae, outcome=outcome, tokens=tokens, bin=str(index))
            planned = mine | controls
            used = planned & np.isfinite(view.columns[outcome])
            target = view.clusters[:, 0]
            both = np.intersect1d(target[used & mine], target[used & controls])
            used &= np.isin(target, both)
            regression = view.regress(
                within(view.columns[outcome][used][:, None], target[used])[:, 0],
                within(mine[used].astype(np.float64)[:, None], target[used]),
                used,
            )
            n, m = int((used & mine).sum()), int((used & controls).sum())
            yield effect_row(
                view,
                f"pair_minus_{control}",
                group,
                planned=planned,
                used=used,
                regression=regression,
                method="difference within targets (OLS with target fixed effects)",
                unit=UNITS[outcome],
                notes=(f"{n} pairs against {m} controls",),
                margin=_margin(view, outcome),
            )


def sign_agreement(view: View, *, sae: str, tokens: str, outcome: str) -> Row:
    """Share of pairs whose effect has the sign of their interference (an effect of exactly 0 counts one
    half); p is against 1/2."""
    planned = view.where(sae=sae, token_set=tokens, relation="pair")
    effect, cosine = view.columns[outcome], view.columns["interference"]
    used = planned & np.isfinite(effect) & np.isfinite(cosine) & (cosine != 0)
    agreement = np.sign(effect[used]) * np.sign(cosine[used]) / 2
    centred = shifted(view.regress(agreement, np.ones((len(agreement), 1)), used), 0.5)
    # t intervals may leave [0, 1], where no share can be.
    regression = replace(centred, lo=np.clip(centred.lo, 0, 1), hi=np.clip(centred.hi, 0, 1))
    unanimous = len(agreement) > 1 and bool((np.abs(agreement) == 0.5).all() and np.ptp(agreement) == 0)
    return effect_row(
        view,
        "sign_agreement",
        view.group(sae=sae, outcome=outcome, tokens=tokens),
        planned=planned,
        used=used,
        regression=regression,
        method="share of pairs, p against 1/2",
        unit="share of pairs",
        notes=("the pairs all agree or all disagree",) if unanimous else (),
        margin=SHARE_MARGIN,
        null=0.5,
    )


def _mean(view: View, contrast: str, group: str, *, planned: Bool[np.ndarray, " arms"], outcome: str) -> Row:
    used = planned & np.isfinite(view.columns[outcome])
    regression = view.regress(view.columns[outcome][used], np.ones((int(used.sum()), 1)), used)
    return effect_row(
        view,
        contrast,
        group,
        planned=planned,
        used=used,
        regression=regression,
        method="mean over pairs",
        unit=UNITS[outcome],
        margin=_margin(view, outcome),
    )


def _coefficient(
    view: View,
    contrast: str,
    group: str,
    *,
    planned: Bool[np.ndarray, " arms"],
    outcome: str,
    regressors: tuple[str, ...],
    wanted: str,
    factor: str | None,
    unit: str,
    notes: tuple[str, ...] = (),
) -> Row:
    """One coefficient of outcome ~ regressors + dummies of `factor`; covariates that do not vary are left
    out, and said."""
    c = view.columns
    used = planned & np.isfinite(c[outcome])
    incomplete = used & ~np.all([np.isfinite(c[r]) for r in regressors], axis=0)
    used &= ~incomplete
    said = list(notes)
    if incomplete.any():
        said.append(f"{int(incomplete.sum())} pairs without {' or '.join(regressors)} are left out")
    constant = [
        r for r in regressors if used.any() and np.ptp(c[r][used]) <= 1e-12 * np.abs(c[r][used]).max()
    ]
    kept = [r for r in regressors if r not in constant]
    levels = sorted(set(c[factor][used].tolist())) if factor else []
    dummies = [(c[factor] == level)[used] for level in levels[1:]] if factor else []
    design = np.column_stack([np.ones(int(used.sum())), *(c[r][used] for r in kept), *dummies]).astype(
        np.float64
    )
    said += [f"{r} does not vary and is left out" for r in constant if r != wanted]
    formula = " + ".join([*regressors, *([factor] if factor and dummies else [])])
    if wanted in constant:
        nan = np.full(1, np.nan)
        regression = Regression(nan, nan, nan, nan, nan, df=nan, reason=f"{wanted} does not vary", remark="")
    else:
        regression = view.regress(c[outcome][used], design, used)
    return effect_row(
        view,
        contrast,
        group,
        planned=planned,
        used=used,
        regression=regression,
        which=0 if wanted in constant else 1 + kept.index(wanted),
        method=f"OLS {outcome} ~ {formula}, one row per pair",
        unit=unit,
        notes=tuple(said),
        margin=_margin(view, outcome) / SLOPE_STEP if wanted == "interference" else float("nan"),
    )


def _margin(view: View, outcome: str) -> float:
    """The declared margin is in nats of log-odds; other outcomes have none."""
    return view.margin if outcome == "logodds" else float("nan")


def _bins(view: View, pairs: Bool[np.ndarray, " arms"]) -> list[int]:
    return sorted({int(b) for b in view.columns["interference_bin"][pairs].tolist() if b >= 0})
