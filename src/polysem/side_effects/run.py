"""Side effects of directions, from a model, a dictionary and prompts: what the stage calls, and a session in Python.

scene = Scene.of(model, sae, features, prompts, label="blocks.2.hook_resid_post")
found = side_effects(scene, scene.features([12, 40]), dose=0.05)
print(found)
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError, MismatchError
from polysem.linear.direct import promoted
from polysem.models.base import WhiteBoxModel
from polysem.plan.index import density_deciles
from polysem.positions import PLAIN, ordinary_rows
from polysem.progress import SILENT, Reporter
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.side_effects.directions import Direction
from polysem.side_effects.firing import firing
from polysem.side_effects.forecast import PREDICTORS, Labelled, forecast_rows, predictors, screen_row
from polysem.side_effects.linear import LinearEffects, linear_effects
from polysem.side_effects.measures import WHERE_ABSENT, Evidence, measure_rows, moved_rows
from polysem.side_effects.push import Pushed
from polysem.side_effects.repair import protected_sets, repair_rows, repaired, second_moment
from polysem.side_effects.scene import Scene
from polysem.store.result import Result
from polysem.store.stages import REGISTRY
from polysem.types import Site
from polysem.vocabulary import SIDE_EFFECTS

log = logging.getLogger(__name__)
N_NULL = 40
"""isotropic directions; with fewer than 39 no two-sided p can reach 0.05"""
ALTERNATIVES = 5
OWN_TOKENS = 10
"""tokens of a direction that nobody said anything about"""
MOST_FORECAST = ("reach_sets", "stability", "cleanliness", "text", "cost_absent")
"""outcomes that are forecast; reach_features where there is a readout"""
SAME = 0.9
"""|cosine| above which a feature is the direction itself, and no alternative"""
TABLES = REGISTRY["side-effects"].tables
Rows = list[dict[str, Any]]


@dataclass(frozen=True, repr=False)
class SideEffects(Result):
    """What was found: the tables of the stage by name. `print` gives a card for each direction."""

    figure = "polysem.report.figures_beside:side_effects"

    held: Mapping[str, pa.Table]
    repairs: Sequence[Direction] = ()

    @classmethod
    def of(cls, rows: Mapping[str, Rows], repairs: Sequence[Direction] = ()) -> "SideEffects":
        """From rows; tables without any are empty."""
        tables = {schema.name: schema.of_rows(rows.get(schema.name, [])) for schema in TABLES}
        return cls(tables, repairs)

    def tables(self) -> Mapping[str, pa.Table]:
        return {"side_effects": self.held["side_effects"], **self.held}

    def facts(self) -> Mapping[str, object]:
        on_target = pc.equal(self.held["side_effects"]["measure"], "on_target")
        rows = self.held["side_effects"].filter(on_target).to_pylist()
        return {r["direction"]: f"{_with_ends(r)} on target" for r in rows if r["value"] is not None}

    def __str__(self) -> str:
        return "\n\n".join("\n".join(card_lines(self.held, d)) for d in self.held["directions"].to_pylist())


def _with_ends(row: Mapping[str, Any]) -> str:
    interval = "" if row["lo"] is None else f" [{row['lo']:.3g}, {row['hi']:.3g}]"
    return f"{row['value']:.3g}{interval}"


def card_lines(tables: Mapping[str, pa.Table], direction: Mapping[str, Any]) -> list[str]:
    """A direction's card as plain text."""
    name = direction["direction"]
    own = [row for row in tables["side_effects"].to_pylist() if row["direction"] == name]
    values = {row["measure"]: row for row in own}
    lines = [
        f"{name} at {direction['site']}, {direction['dose']:g} {direction['dose_unit']}, "
        f"{direction['n_reached']} of {direction['n_prompts']} prompts; towards {', '.join(direction['tokens'])}"
    ]
    for measure, word in SIDE_EFFECTS.items():
        row = values.get(measure)
        if row is None or row["value"] is None:
            continue
        told = "" if row["forecast"] is None else f", forecast {row['forecast']:.3g}"
        null = "" if row["null_lo"] is None else f"; isotropic {row['null_lo']:.3g} to {row['null_hi']:.3g}"
        lines.append(f"  {word.label:<18} {_with_ends(row)}{told}{null} {word.unit}".rstrip())
    for kind in ("category", "tokens", "feature"):
        some = [
            r for r in tables["side_effects_moved"].to_pylist() if (r["direction"], r["kind"]) == (name, kind)
        ]
        shown = [f"{r['name']} {r['value']:+.3g}" for r in some if r["beyond"]][:5]
        if shown:
            lines.append(f"  moves {kind}: {'; '.join(shown)}")
    return lines


def side_effects(
    scene: Scene,
    directions: Sequence[Direction],
    *,
    dose: float,
    unit: str = "kl",
    n_null: int = N_NULL,
    repair: bool = False,
    tokens_from: Mapping[str, str] | None = None,
    reporter: Reporter = SILENT,
) -> SideEffects:
    """Push directions and say what moved.

    Args:
        scene: what they are judged in.
        directions: at one site; those without tokens get what they write through the unembedding by themselves.
        dose: nats, or times the vector as given.
        unit: kl | coefficient.
        n_null: isotropic directions.
        repair: look for the direction with least collateral for each.
        tokens_from: by direction who said what it is meant to move, where it was not its feature.

    Raises:
        ConfigError: a dose that cannot be, two directions of one name.
        MismatchError, SiteError: as `push`.
    """
    if not 0 < dose < np.inf or (unit == "kl" and dose > 5):
        raise ConfigError(f"dose {dose:g} {unit}; expected above 0, and at most 5 nats of KL")
    if len({d.name for d in directions}) < len(directions):
        raise ConfigError("two directions have one name", hint="give each feature and file once")
    said = dict(tokens_from or {})
    directions = [d if d.tokens else _with_tokens(scene.model, d, said) for d in directions]
    scene, own = scene.with_sets(directions)
    pushed = scene.push(directions, dose=dose, unit=unit, reporter=reporter)
    groups = [list(range(len(directions)))] if unit == "kl" else [[k] for k in range(len(directions))]
    rows: dict[str, Rows] = {schema.name: [] for schema in TABLES}
    fixed: list[Direction] = []
    for group in groups:
        some, mine = [directions[k] for k in group], pushed.take(group)
        spent = (
            np.nan_to_num(mine.kl[0], nan=float(np.nanmean(mine.kl[0]))) if unit != "kl" else np.array(dose)
        )
        random = scene.isotropic(some[0].site, n_null)
        null_dose = np.broadcast_to(np.maximum(spent, 1e-12), (n_null, len(scene.prompts)))
        null = scene.push(random, dose=null_dose, reporter=reporter)
        of_null = scene.measured(null, np.full(n_null, -1))
        of_some = scene.measured(mine, own[group], scene.absent(some))
        responses = scene.responses(some[0].site)
        mean = float(np.mean(spent))
        told = linear_effects(np.stack([d.unit for d in some]), responses, dose=mean) if responses else None
        names = [d.name for d in some]
        rows["side_effects"] += measure_rows(of_some, of_null, names, confirm=scene.confirm, forecast=told)
        rows["side_effects_moved"] += moved_rows(
            of_some, of_null, names, _kinds(scene), select=scene.select, confirm=scene.confirm, forecast=told
        )
        for k, d in enumerate(some):
            rows["directions"].append(_direction_row(scene, d, mine, k, dose, unit, n_null, said))
        if repair:
            found = _repairs(scene, some, of_some, told, spent, reporter)
            rows["repairs"] += found[0]
            fixed += found[1]
    _beside(scene, directions, own, rows, dose if unit == "kl" else float(np.nanmean(pushed.kl)))
    return SideEffects.of(rows, fixed)


def _kinds(scene: Scene) -> dict[str, list[str]]:
    """Names of what may move, by kind, in the order of the columns."""
    strings = scene.model.token_strings
    pairs = zip(scene.set_features.tolist(), scene.sets, strict=False)
    names = [f"{feature}: {' '.join(strings(list(ids)[:4])).strip()}" for feature, ids in pairs]
    return {"tokens": names, "category": list(scene.categories), "feature": list(scene.read_names)}


def _with_tokens(model: WhiteBoxModel, d: Direction, said: dict[str, str]) -> Direction:
    """A direction that is meant to move what it writes through the unembedding by itself."""
    import torch

    said[d.name] = "direct"
    return replace(d, tokens=tuple(promoted(model.W_U, torch.from_numpy(d.vector), OWN_TOKENS)))


def _direction_row(
    scene: Scene,
    d: Direction,
    pushed: Pushed,
    k: int,
    dose: float,
    unit: str,
    n_null: int,
    said: Mapping[str, str],
) -> dict[str, Any]:
    gloss = None
    if d.feature is not None:
        own = scene.table.filter(pc.equal(scene.table["feature"], d.feature))
        gloss = own["gloss"][0].as_py() if own.num_rows else None
    good = pushed.reached[k]
    return {
        "direction": d.name, "kind": d.kind, "site": str(d.site), "sae": d.sae, "feature": d.feature,
        "gloss": gloss, "tokens": scene.model.token_strings(list(d.tokens)),
        "tokens_from": said.get(d.name, "feature" if d.feature is not None else "asked"),
        "positions": scene.positions, "dose_unit": unit, "dose": dose, "length": d.norm,
        "coefficient": float(pushed.length[k][good].mean()) / d.norm if good.any() else np.nan,
        "readout": None if scene.readout is None else scene.readout.label,
        "threshold": np.nan if scene.readout is None else scene.readout.threshold,
        "n_prompts": len(scene.prompts), "n_reached": int(good.sum()), "n_null": n_null,
    }  # fmt: skip


def _beside(
    scene: Scene,
    directions: Sequence[Direction],
    own: Int[np.ndarray, " n"],
    rows: dict[str, Rows],
    dose: float,
) -> None:
    """How clean the directions are among the features of their site's dictionary, and which are cleaner."""
    if directions[0].site != scene.dictionary.writes or (told := scene.of_all_features(dose)) is None:
        return
    linear = linear_rows(scene, told)
    clean = np.array([np.nan if r["cleanliness"] is None else r["cleanliness"] for r in linear])
    rows["side_effects_linear"] += linear
    mine = linear_effects(
        np.stack([d.unit for d in directions]), scene.responses(directions[0].site), dose=dose
    )
    glosses = dict(zip(scene.table["feature"].to_pylist(), scene.table["gloss"].to_pylist(), strict=True))
    for row, d, value, k in zip(
        rows["directions"], directions, mine.cleanliness(own), own.tolist(), strict=True
    ):
        row["percentile"] = (
            float((clean[np.isfinite(clean)] < value).mean()) if np.isfinite(value) else np.nan
        )
        if k < 0:
            continue
        towards = told.effect[:, k] / np.sqrt(2 * dose)
        cosine = scene.all_rows @ d.unit
        able = np.isfinite(towards) & (np.abs(cosine) < SAME) & (np.abs(towards) > abs(value))
        order = [f for f in np.argsort(-np.abs(np.nan_to_num(towards)), kind="stable").tolist() if able[f]]
        rows["cleaner"] += [
            {
                "direction": d.name, "rank": rank, "sae": scene.label, "feature": f, "gloss": glosses.get(f),
                "cleanliness": float(towards[f]), "reach_sets": float(told.ratio[f]), "cosine": float(cosine[f]),
            }
            for rank, f in enumerate(order[:ALTERNATIVES])
        ]  # fmt: skip


def linear_rows(scene: Scene, told: LinearEffects) -> Rows:
    """Rows of SIDE_EFFECTS_LINEAR of every feature with a direction."""
    alive = np.flatnonzero(np.abs(scene.all_rows).max(1) > 0)
    on, clean = told.on(scene.all_own), told.cleanliness(scene.all_own)
    known = np.sort(clean[np.isfinite(clean)])
    return [
        {
            "sae": scene.label, "feature": k, "on_target": float(on[k]), "cleanliness": float(clean[k]),
            "percentile": float(np.searchsorted(known, clean[k]) / len(known)) if np.isfinite(clean[k]) else np.nan,
            "kl": float(told.kl[k]), "stability": float(told.stability[k]), "reach_sets": float(told.ratio[k]),
            "n_prompts": int(scene.select.sum()),
        }
        for k in alive.tolist()
    ]  # fmt: skip


def _repairs(
    scene: Scene,
    directions: Sequence[Direction],
    before: Evidence,
    told: LinearEffects | None,
    spent: Float[np.ndarray, "..."],
    reporter: Reporter,
) -> tuple[Rows, list[Direction]]:
    """Rows of REPAIRS and the repaired directions; those without tokens or gradients are left out."""
    if told is None:
        return [], []
    site = directions[0].site
    moment = second_moment(_activations(scene, site))
    chosen, beside, fixed = [], [], []
    for k, d in enumerate(directions):
        own = int(before.own[k])
        if own < 0:
            continue
        protected = protected_sets(told.effect[k], own, scene.sets)
        if told.effect[k, own] < 0:
            log.warning(
                "%s moves its tokens away by %.2g nats on the prompts that repair it, and so does its repair",
                d.name, -told.effect[k, own],
            )  # fmt: skip
        try:
            vector = repaired(d.vector, own, protected, scene.responses(site), moment)
        except ConfigError as error:
            log.warning("%s is not repaired: %s", d.name, error)
            continue
        chosen.append(k)
        beside.append(protected)
        fixed.append(replace(d, name=f"{d.name}, repaired", kind="repaired", vector=vector))
    if not fixed:
        return [], []
    dose = np.broadcast_to(np.maximum(spent, 1e-12), (len(fixed), len(scene.prompts)))
    after = scene.measured(scene.push(fixed, dose=dose, reporter=reporter), before.own[chosen])
    kept = scene.measured(before.pushed.take(chosen), before.own[chosen])
    rows: Rows = []
    for n, k in enumerate(chosen):
        cosine = float(directions[k].unit @ fixed[n].unit)
        rows += repair_rows(
            directions[k].name, kept, after, n, protected=beside[n], cosine=cosine, confirm=scene.confirm
        )
    return rows, fixed


def _activations(scene: Scene, site: Site) -> Float[np.ndarray, "n d"]:
    """Of the select prompts at ordinary positions but the first."""
    import torch

    found = []
    for k in np.flatnonzero(scene.select).tolist():
        tokens = torch.tensor([list(scene.prompts[k])], device=scene.model.spec.device)
        found.append(scene.model.capture(tokens, [site])[site][0, 1:].double().cpu().numpy())
    return ordinary_rows(np.concatenate(found))


def forecast_side_effects(
    scene: Scene,
    n: int,
    *,
    dose: float,
    twins: Sequence[SAE] = (),
    text: Int[np.ndarray, "n_rows context"] | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Rows]:
    """Rows of FORECASTS and SCREENED, from n features of the dictionary, drawn at random and pushed.

    Args:
        scene: what they are judged in.
        dose: nats.
        twins: other dictionaries of the same site, which say how stable a feature is.
        text: rows on which firing is counted; None: it is not.

    Raises:
        MismatchError: a model without gradients.
    """
    linear = scene.of_all_features(dose)
    if linear is None:
        raise MismatchError("a forecast needs the gradients of a transformers model")
    W_U = scene.model.W_U.detach().cpu().double().numpy()
    known = predictors(scene.dictionary, W_U, scene.table, linear, scene.all_own, twins=twins)
    # what is not known of any feature of the dictionary (another width, no text, no twin) tells nothing of any
    known = {name: np.zeros_like(v) if np.isnan(v).all() else v for name, v in known.items()}
    able = np.flatnonzero(np.isfinite(np.stack(list(known.values()))).all(0) & (scene.all_own >= 0))
    rng = rng_for(scene.seed, "side-effects", "forecast", scene.label)
    chosen = np.sort(rng.permutation(able)[:n])
    if text is not None:
        counted = PLAIN.counted(text.shape[1])
        fired = firing(scene.model, scene.dictionary, text, counted, chosen.tolist())
        for name, values in fired._asdict().items():
            known[name][chosen] = values
    directions, scene = scene.features(chosen.tolist()), scene.confirmed()
    pushed = scene.push(directions, dose=dose, reporter=reporter)
    measured = scene.measured(pushed, scene.all_own[chosen], scene.absent(directions))
    outcomes = [*MOST_FORECAST, *(("reach_features",) if scene.readout is not None else ())]
    deciles = density_deciles(np.exp(known["log_density"]))[chosen]
    rows: dict[str, Rows] = {"forecasts": [], "screened": []}
    halves = [np.arange(len(scene.prompts)) % 2 == k for k in (0, 1)]
    on = _labels(measured, "on_target", halves[0])
    for outcome in outcomes:
        labels = [_labels(measured, outcome, half) for half in (scene.confirm, *halves)]
        good = np.isfinite(np.stack([*labels, on])).all(0)
        label, first, second = (one[good] for one in labels)
        mine = {name: v[chosen][good] for name, v in known.items()}
        labelled = Labelled(mine, label, first, second, deciles[good])
        rng = _generators(scene, outcome)
        rows["forecasts"] += [
            {"sae": scene.label, "outcome": outcome, **row} for row in forecast_rows(labelled, seed_rng=rng)
        ]
        if labelled.problem or outcome in WHERE_ABSENT:  # of which two features have few prompts in common
            continue
        told = labelled.told(labelled.first, PREDICTORS["all"], rng("folds"))
        each = np.array(
            [
                [_single(measured, outcome, k, x, halves[1]) for x in np.flatnonzero(halves[1]).tolist()]
                for k in np.flatnonzero(good).tolist()
            ]
        )
        dirty = -told if SIDE_EFFECTS[outcome].better == "high" else told
        rows["screened"].append({"sae": scene.label, "outcome": outcome, **screen_row(dirty, on[good], each)})
    return rows


def _generators(scene: Scene, outcome: str) -> Callable[[str], np.random.Generator]:
    return lambda purpose: rng_for(scene.seed, "side-effects", purpose, scene.label, outcome)


def _labels(measured: Evidence, name: str, half: Bool[np.ndarray, " prompts"]) -> Float[np.ndarray, " n"]:
    found = []
    for k in range(len(measured.own)):
        places = measured.good(k, half)
        found.append(measured.value(name, k, places) if len(places) else np.nan)
    return np.array(found)


def _single(
    measured: Evidence, name: str, row: int, place: int, among: Bool[np.ndarray, " prompts"]
) -> float:
    """A measure on one prompt; stability is the cosine with the mean of the others among some."""
    if not measured.pushed.reached[row, place]:
        return np.nan
    if name == "stability":
        products = measured.pushed.products[row]
        others = np.flatnonzero(measured.pushed.reached[row] & among & (np.arange(len(products)) != place))
        size = products[place, place] * products[np.ix_(others, others)].sum()
        return float(products[place, others].sum() / np.sqrt(size)) if size > 0 else np.nan
    return measured.value(name, row, np.array([place]))
