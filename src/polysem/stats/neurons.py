"""Does a neuron's polysemanticity predict what becomes of the model without it? (arXiv 2505.11611, section 3.6)

The row is the neuron. Three operations: *mask* sets it to 0, *ablate* to its mean over the study's prompts, *amplify*
doubles it. Two outcomes: how much the next-token distribution moves (log10 of the mean KL), and how far the tokens of the
feature that writes most along it move the way that they should: up when it is amplified, down when it is taken away, where
its value is positive; the other way round where it is negative.

    degree                  slope per doubling of 1 + degree, neurons of an SAE compared with one another
    degree_adjusted         with the variance of its activation and the norm of what it writes held fixed (both log10)
    degree_rotated          the same for directions of a basis rotated at random, which are no neurons
    degree_minus_rotated    the difference: what is special to neurons
    super, super_scale_free neurons above degree 500, and above the largest degree of any rotated basis, against the rest
    bin:N                   mean of every bin of degree; 0: tied to nothing

Intervals: jackknife over neurons (HC3), with prompts as a second sample, as in `regress`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from polysem.plan.degrees import SUPER
from polysem.stats.arms import PRIMARY, floats
from polysem.stats.regress import Regression, clustered_ols, independent, within
from polysem.stats.rows import Row, Rows, number
from polysem.store.schema import group_codes

OPERATIONS = ("mask", "ablate", "amplify")
OUTCOMES = {"kl": "log10 nats", "tied": "nats"}
FEW = 10
_COVARIATES = ("variance", "write_norm")


def neuron_effects(
    single: pa.Table, neurons: pa.Table, degrees: pa.Table
) -> tuple[Rows, Mapping[str, np.ndarray]]:
    """NEURON_EFFECTS, a row per neuron and operation; and per outcome what every prompt gives it [rows prompts], NaN
    where there is none.

    Args:
        single: plan joined with trials, of neurons one by one.
        neurons: NEURONS.
        degrees: NEURON_DEGREES, for the largest degree of rotated bases.
    """
    known = {(r["sae"], r["kind"], r["basis"], r["neuron"]): r for r in neurons.to_pylist()}
    largest = {
        (r["sae"], r["kind"]): r["null_hi"] for r in degrees.to_pylist() if r["quantity"] == "largest_degree"
    }
    table = single.filter(_readable(single))
    if not table.num_rows:
        return [], {name: np.empty((0, 0)) for name in OUTCOMES}
    prompt = group_codes(table, ("prompt_id",))
    change = floats(table[f"{PRIMARY}_edit"]) - floats(table[f"{PRIMARY}_base"])
    kl, dose, coordinate = (floats(table[n]) for n in ("kl", "dose", "coordinate"))
    names = ("sae", "locus", "relation", "target", "draw", "interference_bin")
    found: dict[tuple[object, ...], dict[int, tuple[float, float]]] = {}
    for k, key in enumerate(zip(*(table[n].to_pylist() for n in names), strict=True)):
        about_mean = key[4] % 2 == 1
        operation = ("ablate" if about_mean else "mask") if dose[k] < 0 else "" if about_mean else "amplify"
        if not operation:
            continue
        own = known.get((key[0], _kind(key[1]), int(key[2] == "turned_neuron"), key[4] // 2))
        if own is None:
            continue
        centre = own["mean"] if about_mean else 0.0
        toward = np.sign(dose[k]) * np.sign(coordinate[k] - centre)
        found.setdefault((*key, operation), {})[int(prompt[k])] = (kl[k], float(toward * change[k]))
    rows: Rows = []
    grids = {name: np.full((len(found), int(prompt.max()) + 1), np.nan) for name in OUTCOMES}
    for place, ((sae, locus, relation, target, draw, index, operation), cells) in enumerate(
        sorted(found.items(), key=str)
    ):
        basis, number_ = int(relation == "turned_neuron"), int(str(draw)) // 2
        own = known[sae, _kind(locus), basis, number_]
        for at, pair in cells.items():
            grids["kl"][place, at], grids["tied"][place, at] = pair
        most = largest.get((sae, _kind(locus)))
        row: Row = {"sae": sae, "locus": locus, "basis": basis, "neuron": number_, "operation": operation}
        row |= {
            "target": target,
            "degree": own["degree"],
            "degree_bin": index,
            "super": own["degree"] > SUPER,
        }
        row |= {"super_scale_free": None if most is None else own["degree"] > most}
        row |= {name: own[name] for name in _COVARIATES}
        row |= {
            name: float(np.nanmean(np.asarray(grid[place], dtype=np.float64))) for name, grid in grids.items()
        }
        rows.append(row | {"n_prompts": len(cells)})
    return rows, grids


def _kind(locus: object) -> str:
    return "mlp" if locus == "mlp_neuron" else "coordinate"


def _readable(single: pa.Table) -> pa.ChunkedArray:
    """ok trials on confirm prompts, of one token set: KL does not depend on it."""
    ok = pc.and_(pc.equal(single["status"], "ok"), pc.equal(single["split"], "confirm"))
    sets = pc.unique(single["token_set"]).to_pylist()
    first = "in" if "in" in sets else min(sets, default="in")
    return pc.and_(ok, pc.equal(single["token_set"], first))


def neuron_slopes(rows: Rows, grids: Mapping[str, np.ndarray], *, level: float) -> Iterator[Row]:
    """NEURON_SLOPES of every locus, operation and outcome."""
    column = {name: np.array([r[name] for r in rows]) for name in rows[0]} if rows else {}
    for locus in sorted({str(r["locus"]) for r in rows}):
        for operation in OPERATIONS:
            for outcome, unit in OUTCOMES.items():
                here = (column["locus"] == locus) & (column["operation"] == operation)
                values, prompts = _values(grids[outcome], log=outcome == "kl")
                used = here & np.isfinite(values)
                c = {name: v[used] for name, v in column.items()}
                made = _terms(c, values[used], prompts[used], level=level)
                for term, (fit, which, n, scale) in made.items():
                    r = {k: number(getattr(fit, k)[which]) for k in ("estimate", "lo", "hi", "p")}
                    few = f"only {n} neurons" if n < FEW and r["lo"] is not None else ""
                    bare = (
                        fit.remark.replace("pair", "neuron") if fit.remark.startswith("no interval") else ""
                    )
                    said = (fit.reason, bare, few)
                    yield (
                        Row(locus=locus, operation=operation, outcome=outcome, term=term)
                        | r
                        | {"level": level, "n_neurons": n, "n_missing": int(here.sum() - used.sum())}
                        | {
                            "n_prompts": int((prompts[used] != 0).any(axis=0).sum())
                            or grids[outcome].shape[1]
                        }
                        | {"unit": f"{unit}{scale}", "note": "; ".join(s for s in said if s) or None}
                    )


def _values(grid: Float[np.ndarray, "n prompts"], *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Outcome of every neuron, and what each prompt adds to it (of a logarithm to first order)."""
    there = np.isfinite(grid)
    count = np.maximum(there.sum(axis=1), 1)
    filled = np.where(there, grid, 0.0)
    mean = np.where(there.any(axis=1), filled.sum(axis=1) / count, np.nan)
    prompts = np.where(there, grid - mean[:, None], 0.0) / count[:, None]
    if not log:
        return mean, prompts
    positive = mean > 0
    safe = np.where(positive, mean, 1.0)
    return np.where(positive, np.log10(safe), np.nan), prompts / (safe[:, None] * np.log(10))


def _terms(
    c: Mapping[str, np.ndarray], y: np.ndarray, prompts: np.ndarray, *, level: float
) -> dict[str, tuple[Regression, int, int, str]]:
    """Every term: (fit, coefficient, neurons, what the unit is per)."""
    own, turned = c["basis"] == 0, c["basis"] == 1
    degree = np.log2(1 + c["degree"].astype(np.float64))
    held = [np.log10(np.maximum(c[name].astype(np.float64), 1e-300)) for name in _COVARIATES]
    per = " per doubling"
    made: dict[str, tuple[Regression, int, int, str]] = {}

    def fit(
        used: Bool[np.ndarray, " n"], wanted: np.ndarray, more: list[np.ndarray], scale: str
    ) -> tuple[Regression, int, int, str]:
        return (*_fit(c, y, prompts, used, [wanted, *more], level=level), int(used.sum()), scale)

    made["degree"] = fit(own, degree, [], per)
    made["degree_adjusted"] = fit(own, degree, held, per)
    made["degree_rotated"] = fit(turned, degree, held, per)
    # degree x neuron beside degree, the covariates in each basis apart: what neurons have more than rotated directions
    apart = [degree, *(v * own for v in held), *(v * turned for v in held)]
    made["degree_minus_rotated"] = fit(own | turned, degree * own, apart, per)
    for name in ("super", "super_scale_free"):
        flag = np.array([v is True or v == 1 for v in c[name]], dtype=np.float64)
        made[name] = fit(own, flag, held, "")
    for k in np.unique(c["degree_bin"][own]).tolist():
        inside = own & (c["degree_bin"] == k)
        made[f"bin:{k}"] = (*_mean(y, prompts, inside, level=level), int(inside.sum()), "")
    return made


def _fit(
    c: Mapping[str, np.ndarray],
    y: np.ndarray,
    prompts: np.ndarray,
    used: Bool[np.ndarray, " n"],
    columns: list[np.ndarray],
    *,
    level: float,
) -> tuple[Regression, int]:
    """The coefficient of the first column inside SAEs and bases; those behind it that add nothing are left out."""
    if not used.any():
        return Regression.none(1, "no neurons with an outcome"), 0
    names = [f"{s}/{b}" for s, b in zip(c["sae"][used], c["basis"][used], strict=True)]
    group = np.unique(names, return_inverse=True)[1]
    inside = [within(v[used].astype(np.float64)[:, None], group)[:, 0] for v in (y, *columns)]
    kept = independent(inside[1:])
    if not kept or kept[0] != 0:
        return Regression.none(1, "does not vary among the neurons drawn"), 0
    X = np.column_stack([inside[1 + k] for k in kept])
    neuron = np.arange(len(X))
    clusters = np.column_stack([neuron, neuron])
    return clustered_ols(inside[0], X, clusters, level=level, prompts=prompts[used]), 0


def _mean(
    y: np.ndarray, prompts: np.ndarray, used: Bool[np.ndarray, " n"], *, level: float
) -> tuple[Regression, int]:
    neuron = np.arange(int(used.sum()))
    clusters = np.column_stack([neuron, neuron])
    return clustered_ols(y[used], np.ones((len(neuron), 1)), clusters, level=level, prompts=prompts[used]), 0
