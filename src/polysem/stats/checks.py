"""Second opinions on the declared slope, by other assumptions; none of them replaces it.

    mixed_model   the slope with crossed random intercepts of target and source, beside the clustered regression:
                  agrees | disagrees (one of the two resolves a slope of its sign and the other does not)
    qap           is what the gradient says of all (target, feature) related to their cosine, or only to who the
                  target and the feature are? Of what is asked of the token set: for T-out beyond the direct path. Node permutation with fixed effects of both: related | unrelated.
                  Steered pairs are chosen by cosine, so relabelling them would be wrong; this matrix is not.
    missing       are arms with missing trials like those without? random | not_random, from whether they are pairs or
                  controls, and from the interference of pairs

Cost: seconds for the mixed model of 600 pairs, a second for 999 relabellings of 20 x 220 cells.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.seeds import rng_for
from polysem.stats.arms import equals, floats, outcome_of
from polysem.stats.contrasts import RECORD, fitted
from polysem.stats.mixed import mixed_model
from polysem.stats.permute import qap
from polysem.stats.rows import POOLED, Row, Rows, View, number, unit_of
from polysem.vocabulary import OUTCOMES

DRAWS = 999
DEPENDS = 0.01
"""below this chance, missing trials depend on what the arm is"""
ROUNDING = 1e-9
"""share of the gradient below which what is left of it is rounding"""
MIN_ARMS = 8
"""with fewer complete or incomplete arms nothing is said of how they differ"""


def checks_of(view: View, rows: Rows) -> Iterator[Row]:
    """Rows of CHECKS that rest on the trials of one locus.

    Args:
        rows: EFFECTS of the view, for the slope to agree with.
    """
    for tokens in view.token_sets:
        yield _mixed(view, rows, tokens)
        yield _missing(view, tokens)


def qap_checks(matrix: pa.Table, *, level: float, seed: int, draws: int = DRAWS) -> Iterator[Row]:
    """Rows of CHECKS for every SAE and token set of GRADIENT_MATRIX."""
    names = sorted({(r["sae"], r["token_set"]) for r in matrix.select(["sae", "token_set"]).to_pylist()})
    for sae, tokens in names:
        here = matrix.filter(equals(matrix, sae=sae, token_set=tokens))
        row, column = (np.unique(here[n].to_numpy(), return_inverse=True)[1] for n in ("target", "source"))
        shape = (int(row.max()) + 1, int(column.max()) + 1)
        own = here["target"].to_numpy() == here["source"].to_numpy()
        y, x = np.full(shape, np.nan), np.zeros(shape)
        linear, missing = _asked(here, outcome_of(tokens))
        y[row, column] = np.where(own, np.nan, linear)
        x[row, column] = here["interference"].to_numpy()
        rng = rng_for(seed, "qap", sae, tokens)
        found = qap(y, x, draws=draws, rng=rng, fixed_effects=True, alpha=1 - level)
        reason = missing or found.reason
        p, slope = (None, None) if reason else (found.p, found.estimate)
        verdict = "none" if p is None else "related" if p < 1 - level else "unrelated"
        note = reason or f"{found.draws} relabellings of {shape[0]} targets and {shape[1]} features"
        row = _row("qap", "", sae, tokens, level, estimate=slope, p=p)
        unit = f"{unit_of(outcome_of(tokens))} per unit and cosine"
        yield row | {"n": int(np.isfinite(y).sum()), "unit": unit, "verdict": verdict, "note": note}


def _asked(cells: pa.Table, outcome: str) -> tuple[Float[np.ndarray, " n"], str]:
    """Gradients of what is asked of the token set, and why there are none."""
    linear = floats(cells["linear"])
    less = OUTCOMES[outcome].less
    if not less:
        return linear, ""
    direct = floats(cells[less])
    beyond = linear - direct
    if not np.isfinite(direct).any():
        return beyond, "the site has no direct path, so nothing is known of what goes beyond it"
    if np.nanmax(np.abs(beyond)) <= ROUNDING * np.nanmax(np.abs(linear)):
        return beyond, "no block follows the site: all of the gradient is the direct path"
    return beyond, ""


def _mixed(view: View, rows: Rows, tokens: str) -> Row:
    """effect ~ interference + the covariates of record + layer type, with crossed random intercepts."""
    from scipy.special import ndtr, ndtri

    outcome = outcome_of(tokens)
    pairs = view.known(outcome, relation="pair", token_set=tokens)
    made = fitted(view, pairs, RECORD, wanted="interference", factor="layer_type")
    unit = f"{unit_of(outcome)} per cosine"
    row = _row(
        "mixed_model", view.locus, POOLED, tokens, view.level, unit=unit, n=len(made.rows), verdict="none"
    )
    if made.reason:
        return row | {"note": made.reason}
    fit = mixed_model(view.columns[outcome][made.rows], made.x, view.clusters[made.rows])
    if fit.reason or "converge" in fit.remark:
        return row | {"note": fit.reason or fit.remark}
    slope, se = float(fit.estimate[made.which]), float(fit.se[made.which])
    p, reach = float(2 * ndtr(-abs(slope / se))), float(ndtri(0.5 + view.level / 2)) * se
    spread = f"SD of targets {fit.sd_target:.2g}, sources {fit.sd_source:.2g}, pairs {fit.sd_residual:.2g}"
    return row | {
        "estimate": slope,
        "lo": slope - reach,
        "hi": slope + reach,
        "p": p,
        "verdict": _agreement(slope, p, _declared(view, rows, tokens), 1 - view.level),
        "note": "; ".join(filter(None, (fit.remark, spread))),
    }


def _declared(view: View, rows: Rows, tokens: str) -> tuple[float, float] | None:
    """Estimate and p of the clustered slope on interference."""
    wanted = view.group(sae=POOLED, outcome=outcome_of(tokens), tokens=tokens)
    for r in rows:
        if r["contrast"] == "slope_interference" and r["group"] == wanted and isinstance(r["p"], float):
            return float(str(r["estimate"])), r["p"]
    return None


def _agreement(slope: float, p: float, other: tuple[float, float] | None, alpha: float) -> str:
    if other is None:
        return "none"
    resolved = (p < alpha, other[1] < alpha)
    same = resolved[0] == resolved[1] and (not resolved[0] or slope * other[0] > 0)
    return "agrees" if same else "disagrees"


def _missing(view: View, tokens: str) -> Row:
    """Whether arms that lack trials differ from those that do not."""
    c = view.columns
    arms = view.where(token_set=tokens)
    pair = np.asarray(c["relation"] == "pair", dtype=bool)
    lacking = c["n_ok"] < c["n_planned"]
    share = {
        name: float(1 - c["n_ok"][chosen].sum() / max(1.0, c["n_planned"][chosen].sum()))
        for name, chosen in (("pairs", arms & pair), ("controls", arms & ~pair))
    }
    said = f"missing: {100 * share['pairs']:.1f} % of the trials of pairs, {100 * share['controls']:.1f} % of all others"
    counts = [[int((arms & p & m).sum()) for m in (lacking, ~lacking)] for p in (pair, ~pair)]
    row = _row("missing", view.locus, POOLED, tokens, view.level, unit="share of trials", n=int(arms.sum()))
    row |= {"estimate": share["pairs"] - share["controls"], "verdict": "random"}
    if not any(lost for lost, _ in counts):
        return row | {"note": "no trial is missing"}
    from scipy.stats import fisher_exact, mannwhitneyu  # two CPU seconds, which most studies do not need

    p = [float(fisher_exact(np.array(counts)).pvalue)]
    x = np.abs(c["interference"])
    there, gone = (x[arms & pair & m & np.isfinite(x)] for m in (~lacking, lacking))
    if min(len(there), len(gone)) >= MIN_ARMS:
        p.append(float(mannwhitneyu(gone, there).pvalue))
    smallest = min(1.0, len(p) * min(p))
    return row | {"p": smallest, "verdict": "not_random" if smallest < DEPENDS else "random", "note": said}


def _row(check: str, locus: str, sae: str, tokens: str, level: float, **more: object) -> Row:
    """One row of CHECKS; numbers that are not finite are null."""
    finite = {k: number(v) if isinstance(v, float) else v for k, v in more.items()}
    key: Row = {"check": check, "locus": locus, "sae": sae, "token_set": tokens, "level": level}
    return dict.fromkeys(("estimate", "lo", "hi", "p", "note")) | key | finite
