"""Second opinions on the declared slope, by other assumptions; none of them replaces it.

    mixed_model   the slope with crossed random intercepts of target and source, beside the clustered regression:
                  agrees | disagrees (one of the two resolves a slope of its sign and the other does not)
    qap           is what the gradient says of all (target, feature) related to their cosine, or only to who the
                  target and the feature are? Node permutation with fixed effects of both: related | unrelated.
                  Steered pairs are chosen by cosine, so relabelling them would be wrong; this matrix is not.
    missing       are arms with missing trials like those without? random | not_random, from whether they are pairs or
                  controls, and from the interference of pairs

Cost: seconds for the mixed model of 600 pairs, a second for 999 relabellings of 20 x 220 cells.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.seeds import rng_for
from polysem.stats.mixed import mixed_model
from polysem.stats.permute import qap
from polysem.stats.rows import POOLED, View
from polysem.store.tables import CHECKS

DRAWS = 999
DEPENDS = 0.01
"""below this chance, missing trials depend on what the arm is"""
MIN_ARMS = 8
"""with fewer complete or incomplete arms nothing is said of how they differ"""
Rows = list[dict[str, object]]


def checks_of(view: View, rows: Rows) -> Iterator[dict[str, object]]:
    """Rows of CHECKS that rest on the trials of one locus.

    Args:
        view: the locus at its headline dose.
        rows: EFFECTS of the view, for the slope to agree with.
    """
    for tokens in sorted(set(view.columns["token_set"].tolist())):
        yield _mixed(view, rows, tokens)
        yield _missing(view, tokens)


def qap_checks(
    matrix: pa.Table, *, level: float, seed: int, draws: int = DRAWS
) -> Iterator[dict[str, object]]:
    """Rows of CHECKS for every SAE and token set of GRADIENT_MATRIX."""
    names = sorted({(r["sae"], r["token_set"]) for r in matrix.select(["sae", "token_set"]).to_pylist()})
    for sae, tokens in names:
        here = matrix.filter(pc.and_(pc.equal(matrix["sae"], sae), pc.equal(matrix["token_set"], tokens)))
        row, column = (np.unique(here[n].to_numpy(), return_inverse=True)[1] for n in ("target", "source"))
        shape = (int(row.max()) + 1, int(column.max()) + 1)
        own = here["target"].to_numpy() == here["source"].to_numpy()
        y, x = np.full(shape, np.nan), np.zeros(shape)
        y[row, column] = np.where(own, np.nan, here["linear"].to_numpy())
        x[row, column] = here["interference"].to_numpy()
        rng = rng_for(seed, "qap", sae, tokens)
        found = qap(y, x, draws=draws, rng=rng, fixed_effects=True, alpha=1 - level)
        verdict = "none" if found.reason else "related" if found.p < 1 - level else "unrelated"
        note = found.reason or f"{found.draws} relabellings of {shape[0]} targets and {shape[1]} features"
        yield _row(
            "qap", "", sae, tokens, level,
            estimate=found.estimate, p=found.p, n=int(np.isfinite(y).sum()),
            unit="nats per unit and cosine", verdict=verdict, note=note,
        )  # fmt: skip


def checks_table(rows: Rows) -> pa.Table:
    return CHECKS.conform(pa.Table.from_pylist(rows, schema=CHECKS.arrow()))


def _mixed(view: View, rows: Rows, tokens: str) -> dict[str, object]:
    """effect ~ interference + similarity + layer type with crossed random intercepts."""
    c = view.columns
    used = view.where(relation="pair", token_set=tokens) & np.isfinite(c["logodds"])
    used &= np.isfinite(c["interference"]) & np.isfinite(c["similarity"])
    types = sorted(set(c["layer_type"][used].tolist()))[1:]
    regressors = [c["interference"], c["similarity"], *(c["layer_type"] == name for name in types)]
    varying = [
        r[used].astype(np.float64)
        for r in regressors
        if used.any() and np.ptp(r[used].astype(np.float64)) > 0
    ]
    design = np.column_stack([np.ones(int(used.sum())), *varying])
    flat = not used.any() or not np.ptp(c["interference"][used]) > 0
    at = {"unit": "nats per cosine", "n": int(used.sum()), "verdict": "none"}
    if flat:
        return _row(
            "mixed_model", view.locus, POOLED, tokens, view.level, note="interference does not vary", **at
        )
    fit = mixed_model(c["logodds"][used], design, view.clusters[used])
    if fit.reason or "converge" in fit.remark:
        return _row(
            "mixed_model", view.locus, POOLED, tokens, view.level, note=fit.reason or fit.remark, **at
        )  # fmt: skip
    from scipy.special import ndtr, ndtri

    slope, se = float(fit.estimate[1]), float(fit.se[1])
    p, reach = float(2 * ndtr(-abs(slope / se))), float(ndtri(0.5 + view.level / 2)) * se
    spread = f"SD of targets {fit.sd_target:.2g}, sources {fit.sd_source:.2g}, pairs {fit.sd_residual:.2g}"
    at["verdict"] = _agreement(slope, p, _declared(view, rows, tokens), 1 - view.level)
    return _row(
        "mixed_model", view.locus, POOLED, tokens, view.level,
        estimate=slope, lo=slope - reach, hi=slope + reach, p=p, note="; ".join(filter(None, (fit.remark, spread))), **at,
    )  # fmt: skip


def _declared(view: View, rows: Rows, tokens: str) -> tuple[float, float] | None:
    """Estimate and p of the clustered slope on interference."""
    wanted = view.group(sae=POOLED, outcome="logodds", tokens=tokens)
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


def _missing(view: View, tokens: str) -> dict[str, object]:
    """Whether arms that lack trials differ from those that do not."""
    from scipy.stats import fisher_exact, mannwhitneyu

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
    at = {"unit": "share of trials", "n": int(arms.sum()), "estimate": share["pairs"] - share["controls"]}
    if sum(row[0] for row in counts) == 0:
        return _row(
            "missing",
            view.locus,
            POOLED,
            tokens,
            view.level,
            verdict="random",
            note="no trial is missing",
            **at,
        )
    p = [float(fisher_exact(counts).pvalue)]  # pyright: ignore[reportAttributeAccessIssue]  (scipy has no stubs)
    x = np.abs(c["interference"])
    there, gone = (x[arms & pair & m & np.isfinite(x)] for m in (~lacking, lacking))
    if min(len(there), len(gone)) >= MIN_ARMS:
        p.append(float(mannwhitneyu(gone, there).pvalue))
    smallest = min(1.0, len(p) * min(p))
    verdict = "not_random" if smallest < DEPENDS else "random"
    return _row(
        "missing", view.locus, POOLED, tokens, view.level, p=smallest, verdict=verdict, note=said, **at
    )


def _row(check: str, locus: str, sae: str, tokens: str, level: float, **more: object) -> dict[str, object]:
    base: dict[str, object] = {"estimate": None, "lo": None, "hi": None, "p": None}
    finite: Mapping[str, object] = {
        k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in more.items()
    }
    key = {"check": check, "locus": locus, "sae": sae, "token_set": tokens, "level": level}
    return base | key | dict(finite)
