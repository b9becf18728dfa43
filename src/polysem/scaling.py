"""How dictionaries of one site change with their width and training: measures of each, chance beside them, and curves.

    capacity   C_i = |d_i|^4 / sum_j (d_i . d_j)^2: the share of a dimension that a feature has to itself; sum C_i <= d
               (Scherlis et al., arXiv 2210.01892)
    close      share of pairs with |cosine| >= 0.3, beside that of random directions; and of the close ones, those that fire
               together no more than by chance
    counter    close pairs with unlike glosses; and from a study of the dictionary lambda, what interference explains of the
               linear response, what that explains of effects, and how much a push moves (reach)
    fit        y = a + b x^-c over widths, and over training compute at one width, with a jackknife over seeds

A wider dictionary of random directions has more close pairs, too, and less capacity a feature; so each measure stands beside
random rows of the same shape, and beside as many rows of the widest dictionary (geometry without learning at that width).
Shares of pairs, and of token sets, are what they are in the widest when features are left out at random: for what a study
measures the widest is the thinned one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from polysem.atlas import Responder
from polysem.errors import ConfigError, MismatchError
from polysem.geometry import cosine_tail
from polysem.hierarchy.firing import Fired, cofiring_tail
from polysem.models.hf import HFModel
from polysem.seeds import rng_for
from polysem.side_effects.linear import linear_effects
from polysem.side_effects.scene import Scene
from polysem.stats.arms import ARM, PRIMARY
from polysem.stats.explain import r2_of
from polysem.vocabulary import TOKEN_SETS

CLOSE = 0.3
"""|cosine| of a close pair"""
UNLIKE = 0.3
"""glosses whose similarity is below are unlike"""
MEASURES = ("capacity", "close", "rms", "largest")
"""of decoder rows alone"""
ON_TEXT = ("fvu", "apart")
"""of a text, besides"""
STUDIED = (
    "counter", "counter_of_close", "lambda_in", "lambda_out", "by_cosine_in", "by_cosine_out", "linear_in", "linear_out",
    "linear_close_in", "linear_close_out", "reach",
)  # fmt: skip
"""of a study of the dictionary, besides"""
SETS = 500
"""token sets at most, drawn at random, that reach is a share of"""
_BLOCK = 1024
_SLOWEST, _STEEPEST = 0.02, 4.0
"""exponents that are looked at: beyond, a curve is a line or a step"""
_EDGE = 1e-9
"""cells of a table begin at decimal numbers that a float only nears"""


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
    """y = a + b x^-c."""

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
    width: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    seed: Float[np.ndarray, " n"],
    *,
    of: str = "width",
) -> PowerFit:
    """The curve of least squares over widths, or over anything else that is positive, and seeds.

    Args:
        width: x of each dictionary.
        y: its measure.
        seed: that it was trained from.
        of: what x is, in a word.

    Raises:
        ConfigError: with fewer than three of them.
    """
    if len(np.unique(width)) < 3:
        raise ConfigError(
            f"{len(np.unique(width))} widths; a curve asks for three widths",
            hint="add dictionaries of other widths of the site, of one sparsity and trained alike",
        )
    unknown = int((~np.isfinite(y)).sum())
    if unknown:  # the share that is apart, where a dictionary has no close pair
        nan = float("nan")
        return PowerFit(nan, nan, nan, nan, nan, nan, f"unknown of {unknown} of {len(y)}: no curve")
    if not np.ptp(y):  # any c fits it
        nan = float("nan")
        return PowerFit(float(y[0]), 0.0, nan, nan, nan, 0.0, f"the same at every {of}: no curve")
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


Row = Mapping[str, Any]


def usual_of(measured: Sequence[Row]) -> list[Row]:
    """The dictionaries that differ in width and seed alone: of the sparsity that most have, and of it of the training tokens that
    most have; None is an amount like any other."""
    found = list(measured)
    for name in ("k", "training_tokens"):
        values = [r[name] for r in found]
        usual = max(dict.fromkeys(values), key=values.count)
        found = [r for r in found if r[name] == usual]
    return found


def by_compute(measured: Sequence[Row]) -> list[Row]:
    """The dictionaries that differ in training compute and seed alone: of the usual sparsity, those of the width that was trained
    for most amounts of tokens, three or more; else none."""
    usual = usual_of(measured)[0]["k"]
    known = [r for r in measured if r["k"] == usual and r["compute"] is not None]
    amounts = {
        width: len({r["compute"] for r in known if r["width"] == width})
        for width in {r["width"] for r in known}
    }
    width = max(sorted(amounts), key=lambda w: amounts[w], default=0)
    return [r for r in known if r["width"] == width] if amounts.get(width, 0) >= 3 else []


def curves(measured: Sequence[Row], beside: Sequence[Row]) -> dict[str, PowerFit]:
    """Fits by name: of every measure over widths, learnt and random, and over training compute at one width.

    Args:
        measured: a row for each dictionary: `width`, `k`, `seed`, `training_tokens` and `compute`, and its measures.
        beside: of `rows_of`.

    Raises:
        ConfigError: with fewer than three widths.
    """
    known = [name for name in STUDIED if any(r.get(name) is not None for r in measured)]
    names = (*MEASURES, *ON_TEXT, *known)
    trained = by_compute(measured)
    groups = [
        ("learnt", usual_of(measured), "width", names),
        ("random", [r for r in beside if r["kind"] == "random"], "width", MEASURES),
        *((f"compute at {r['width']}", trained, "compute", names) for r in trained[:1]),
    ]
    return {
        f"{kind}, {name}": power_fit(*(_column(rows, key) for key in (x, name, "seed")), of=x)
        for kind, rows, x, some in groups
        for name in some
    }


def _column(rows: Sequence[Row], name: str) -> Float[np.ndarray, " n"]:
    """Of rows; NaN for what is not known."""
    values = [r.get(name) for r in rows]
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def at_one_fvu(measured: Sequence[Row]) -> list[dict[str, Any]]:
    """Measures of every width at the reconstruction that most widths reach by some sparsity, in each seed that has several; none
    with one sparsity."""
    # Seeds differ, so sparsities are compared within one.
    tokens = usual_of(measured)[0]["training_tokens"]
    alike = [r for r in measured if r["training_tokens"] == tokens]
    names = sorted({(r["width"], r["seed"]) for r in alike})
    families = {key: [r for r in alike if (r["width"], r["seed"]) == key] for key in names}
    families = {key: some for key, some in families.items() if len({r["k"] for r in some}) > 1}
    if not families:
        return []
    low, high = (
        np.array([pick(r["fvu"] for r in some) for some in families.values()]) for pick in (min, max)
    )
    middle = float((low.max() + high.min()) / 2)
    return [
        {"width": width, "seed": seed, "fvu": middle}
        | {name: at_matched(_column(some, "fvu"), _column(some, name), middle) for name in MEASURES}
        for (width, seed), some in families.items()
    ]


# What a study of a dictionary measured ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CounterIntuitive:
    """Pairs of features that both have a direction and a gloss, of one dictionary."""

    share: float
    """of them that are close and have unlike glosses"""
    of_close: float
    """of the close ones, those with unlike glosses; NaN without a close one"""
    unlike: float
    """of all, those with unlike glosses: what `of_close` is where closeness has nothing to do with glosses"""


def counter_intuitive(density: pa.Table) -> CounterIntuitive:
    """From DENSITY of one dictionary, whose cells have an edge at 0.3 on both axes; NaN without a pair."""
    lo, hi, similarity, count = (
        density[name].to_numpy().astype(np.float64)
        for name in ("interference_lo", "interference_hi", "similarity_hi", "count")
    )
    close = (lo >= CLOSE - _EDGE) | (hi <= -CLOSE + _EDGE)
    unlike = similarity <= UNLIKE + _EDGE
    total, both = count.sum(), count[close & unlike].sum()
    return CounterIntuitive(
        _part(both, total), _part(both, count[close].sum()), _part(count[unlike].sum(), total)
    )


def _part(some: float, of: float) -> float:
    return float(some / of) if of else float("nan")


def explained_by_cosine(matrix: pa.Table) -> float:
    """Share of the variance of the linear response of targets to sources that a line in their cosine explains; NaN where
    either is the same everywhere.

    Args:
        matrix: GRADIENT_MATRIX of one dictionary and token set; a target's own row is left out.
    """
    others = matrix.filter(pc.not_equal(matrix["target"], matrix["source"]))
    x, y = (others[name].to_numpy() for name in ("interference", "linear"))
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def explained_by_response(
    pair_effects: pa.Table, response: pa.Table, *, least: float = 0.0
) -> tuple[float, int]:
    """(share of the variance of pairs' measured effects that the linear response explains, nothing fitted; pairs), at the largest
    dose; NaN with fewer than three pairs.

    Args:
        pair_effects: PAIR_EFFECTS of one dictionary and token set.
        response: RESPONSE of the same.
        least: |interference| of the pairs, at least.
    """
    keys = [*ARM, "token_set", "dose"]
    wanted = pc.and_(
        pc.equal(pair_effects["relation"], "pair"),
        pc.and_(
            pc.equal(pair_effects["dose"], pc.max(pair_effects["dose"])),
            pc.greater_equal(pc.abs(pair_effects["interference"]), least - _EDGE),
        ),
    )
    both = pair_effects.filter(wanted).select([*keys, PRIMARY])
    both = both.join(response.select([*keys, "linear"]), keys, join_type="inner").drop_null()
    if both.num_rows < 3:
        return float("nan"), both.num_rows
    found = r2_of(both[PRIMARY].to_numpy(), both["linear"].to_numpy())
    return float("nan") if found is None else found, both.num_rows


def of_study(table: Callable[[str], pa.Table], label: str) -> dict[str, float | int]:
    """What a finished study says of one of its dictionaries, by the names of `docs/scaling.md`.

    Args:
        table: gives a table of the study by name.
        label: of the dictionary.
    """

    def own(name: str, **values: object) -> pa.Table:
        found = table(name)
        for column, value in {"sae": label, **values}.items():
            found = found.filter(pc.equal(found[column], value))
        return found

    counter = counter_intuitive(own("density", sae_j=label))
    found: dict[str, float | int] = {
        "counter": counter.share, "counter_of_close": counter.of_close, "unlike": counter.unlike,
    }  # fmt: skip
    for tokens in TOKEN_SETS:
        # the first band is all pairs
        bands = own("compensation", token_set=tokens).sort_by(
            [("band_lo", "ascending"), ("band_hi", "descending")]
        )
        estimate = bands["estimate"][0].as_py() if bands.num_rows else None
        found[f"lambda_{tokens}"] = float("nan") if estimate is None else estimate
        found[f"by_cosine_{tokens}"] = explained_by_cosine(own("gradient_matrix", token_set=tokens))
        tables = own("pair_effects", token_set=tokens), own("response", token_set=tokens)
        for name, least in (("linear", 0.0), ("linear_close", CLOSE)):
            found[f"{name}_{tokens}"], found[f"n_{name}_{tokens}"] = explained_by_response(
                *tables, least=least
            )
    return found


def reach(scene: Scene) -> tuple[float, float]:
    """(of the dictionary's features, of as many random directions): the share of token sets that a push moves, by gradient, mean
    over directions. Sets are those of the dictionary's own features, `SETS` of them drawn at random; the share is their
    participation ratio (`side_effects.linear`) over their number.

    Raises:
        MismatchError: a model without gradients.
    """
    if not isinstance(scene.model, HFModel):
        raise MismatchError("reach needs the gradients of a transformers model")
    rng = rng_for(scene.seed, "reach", scene.label)
    picked = np.sort(rng.permutation(len(scene.set_features))[:SETS]).tolist()
    sets = [scene.sets[k] for k in picked]
    respond = Responder(scene.model, scene.dictionary.writes, sets, positions=scene.positions)
    responses = [respond(scene.prompts[k]) for k in np.flatnonzero(scene.select).tolist()]
    rows = scene.all_rows[np.abs(scene.all_rows).max(1) > 0]
    chance = random_rows(len(rows), rows.shape[1], seed=scene.seed)
    ratio, random = (
        float(np.mean(linear_effects(one, responses, dose=1.0).ratio)) / len(sets) for one in (rows, chance)
    )
    return ratio, random
