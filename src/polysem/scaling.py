"""How the geometry of dictionaries of one site changes with their width: measures of each, chance beside them, and curves.

    capacity   C_i = |d_i|^4 / sum_j (d_i . d_j)^2: the share of a dimension that a feature has to itself; sum C_i <= d
               (Scherlis et al., arXiv 2210.01892)
    close      share of pairs with |cosine| >= 0.3, beside that of random directions; and of the close ones, those that fire
               together no more than by chance
    fit        y = a + b width^-c, with a jackknife over seeds

A wider dictionary of random directions has more close pairs, too, and less capacity a feature; so each measure stands beside
random rows of the same shape, and beside as many rows of the widest dictionary (geometry without learning at that width).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError
from polysem.geometry import cosine_tail
from polysem.hierarchy.firing import Fired, cofiring_tail
from polysem.seeds import rng_for

CLOSE = 0.3
"""|cosine| of a close pair"""
MEASURES = ("capacity", "close", "rms", "largest")
"""of decoder rows alone"""
_BLOCK = 1024
_SLOWEST, _STEEPEST = 0.02, 4.0
"""exponents that are looked at: beyond, a curve is a line or a step"""


def capacity(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The share of a dimension that each row has to itself; 0 for a zero row."""
    gram = rows.T @ rows
    squares = np.einsum("nd,nd->n", rows, rows) ** 2
    # sum_j (d_i . d_j)^2 = d_i' (sum_j d_j d_j') d_i
    shared = np.einsum("nd,nd->n", rows @ gram, rows)
    return np.divide(squares, shared, out=np.zeros(len(rows)), where=shared > 0)


@dataclass(frozen=True)
class Geometry:
    """Of the unit rows of one dictionary."""

    width: int
    capacity: float
    """mean over features"""
    close: float
    """share of pairs with |cosine| >= CLOSE"""
    rms: float
    """root mean square cosine"""
    largest: float
    """mean over features of the largest |cosine| with another"""


def geometry(units: Float[np.ndarray, "n d"]) -> Geometry:
    """Measures of unit rows; n >= 2."""
    n = len(units)
    close, best = 0, np.zeros(n)
    for start in range(0, n, _BLOCK):
        cosine = np.abs(units[start : start + _BLOCK] @ units.T)
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = 0
        close += int((cosine >= CLOSE).sum())
        best[start : start + _BLOCK] = cosine.max(axis=1)
    gram = units.T @ units
    square = (float((gram * gram).sum()) - n) / (n * (n - 1))
    return Geometry(
        n, float(capacity(units).mean()), close / (n * (n - 1)), max(square, 0.0) ** 0.5, float(best.mean())
    )


def random_rows(n: int, d: int, *, seed: int) -> Float[np.ndarray, "n d"]:
    """Directions at random."""
    rows = rng_for(seed, "random decoder", n).standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def chance_close(d: int) -> float:
    """Share of close pairs among random directions."""
    return float(cosine_tail(CLOSE, d=d, two_sided=True))


def apart(seen: Fired, *, fewest: int = 10) -> float:
    """Of close pairs both of whose members fire, the share that meets no more often than by chance (exact, 5 %); NaN without
    close pairs."""
    live = np.flatnonzero(seen.count >= fewest)
    n_close = n_apart = 0
    for start in range(0, len(live), _BLOCK):
        block = live[start : start + _BLOCK]
        cosine = np.abs(seen.units[block] @ seen.units[live].T)
        i, j = np.nonzero((cosine >= CLOSE) & (live[None, :] > block[:, None]))
        both = (seen.fires[:, block].T @ seen.fires[:, live]).toarray()[i, j].astype(np.int64)
        p = cofiring_tail(both, seen.n, seen.count[block[i]], seen.count[live[j]], above=True)
        n_close, n_apart = n_close + len(i), n_apart + int((p > 0.05).sum())
    return n_apart / n_close if n_close else float("nan")


@dataclass(frozen=True)
class PowerFit:
    """y = a + b width^-c."""

    a: float
    b: float
    c: float
    lo: float
    hi: float
    """of c: 95 %, by leaving out one seed at a time; NaN with one seed, or where a curve without one has no exponent"""
    residual: float
    """root mean square, as a share of the range of y"""
    note: str = ""
    """why c is no exponent; "" if it is one"""


def power_fit(
    width: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], seed: Float[np.ndarray, " n"]
) -> PowerFit:
    """The curve of least squares over widths and seeds.

    Raises:
        ConfigError: with fewer than three widths.
    """
    if len(np.unique(width)) < 3:
        raise ConfigError(
            f"{len(np.unique(width))} widths; a curve asks for three widths",
            hint="add dictionaries of other widths of the site",
        )
    unknown = int((~np.isfinite(y)).sum())
    if unknown:  # the share that is apart, where a dictionary has no close pair
        nan = float("nan")
        return PowerFit(nan, nan, nan, nan, nan, nan, f"unknown of {unknown} of {len(y)}: no curve")
    if not np.ptp(y):  # any c fits it
        nan = float("nan")
        return PowerFit(float(y[0]), 0.0, nan, nan, nan, 0.0, "the same at every width: no curve")
    a, b, c, squares = _curve(width, y)
    seeds = np.unique(seed)
    lo = hi = float("nan")
    if len(seeds) > 1:
        left = np.array([_curve(width[seed != s], y[seed != s])[2] for s in seeds])
        m = len(seeds)
        se = float(np.sqrt((m - 1) / m * ((left - left.mean()) ** 2).sum()))
        from scipy.stats import t

        # Two curves at one end of what is looked at agree in nothing.
        reach = float("nan") if any(map(_at_an_end, left)) else float(t.ppf(0.975, m - 1)) * se
        lo, hi = c - reach, c + reach
    spread = float(np.ptp(y))
    note = (
        f"c is at an end of what is looked at, {_SLOWEST:g} to {_STEEPEST:g}: no such curve"
        if _at_an_end(c)
        else "without one seed c is at an end of what is looked at: no interval"
        if len(seeds) > 1 and np.isnan(lo)
        else ""
    )
    return PowerFit(a, b, c, lo, hi, float(np.sqrt(squares / len(y))) / spread, note)


def _at_an_end(c: float) -> bool:
    return not 1.01 * _SLOWEST <= c <= 0.99 * _STEEPEST


def _curve(width: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """(a, b, c, squares left): a and b are linear given c, so c alone is looked for, first on a grid."""
    from scipy.optimize import minimize_scalar

    scaled = width / width.min()

    def at(c: float) -> tuple[np.ndarray, float]:
        design = np.column_stack([np.ones(len(y)), scaled**-c])
        found = np.linalg.lstsq(design, y, rcond=None)[0]
        return found, float(((y - design @ found) ** 2).sum())

    grid = np.geomspace(_SLOWEST, _STEEPEST, 60)
    best = int(np.argmin([at(c)[1] for c in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    made = minimize_scalar(lambda v: at(v)[1], bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    c = float(made.x)
    (a, b), squares = at(c)
    return float(a), float(b * width.min() ** c), c, squares


def at_matched(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], wanted: float) -> float:
    """y where x is `wanted`, along the line between the two nearest of a family that differs in sparsity; NaN beyond its ends."""
    order = np.argsort(x)
    inside = x[order[0]] <= wanted <= x[order[-1]]
    return float(np.interp(wanted, x[order], y[order])) if inside else float("nan")


def rows_of(
    measured: Sequence[Mapping[str, Any]], units: Mapping[int, np.ndarray], *, seed: int = 0
) -> list[dict[str, object]]:
    """Random and thinned-out dictionaries at the widths that were measured.

    Args:
        measured: rows with `width`.
        units: unit rows of the widest dictionary, by a number.
        seed: of draws.
    """
    widths = sorted({int(r["width"]) for r in measured})
    found: list[dict[str, object]] = []
    for number, rows in units.items():
        rng = rng_for(seed, "thinned", number)
        for width in widths:
            made = {"random": random_rows(width, rows.shape[1], seed=number)}
            if width < len(rows):
                made["thinned"] = rows[np.sort(rng.permutation(len(rows))[:width])]
            found += [{"kind": kind, "seed": number} | asdict(geometry(own)) for kind, own in made.items()]
    return found
