"""The paper's estimate, the strict one, and the way from one to the other, on the same pairs and prompts.

Each question is answered with every choice that arXiv 2505.11611 and its code make, and then again with one choice
after another replaced by a defensible one, until what is left is the strict estimate of the effects table. The
`walk` changes them one after the other, so that its steps add up; `alone` changes each by itself. A walk depends on
its order, which is always that of `CHANGES`: where a step's size differs from that of the change alone, choices
interact and neither number is the share of that choice.

Both ends use confirm prompts: the paper's way chooses and reports on them, the strict way chooses on the others.
Questions: `slope_b` and `slope_a`, the coefficient of interference in Models B and A (protocol 4.1); `mean`, the
mean effect of a relation; `difference`, pairs minus random. What cannot be estimated is a row with the reason.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from polysem.stats.grid import Cells, Grid, Outcome, Selection, Sign, Start, effects_of, means_by_arm
from polysem.stats.paper import plain_ols, welch
from polysem.stats.regress import Regression, within
from polysem.stats.rows import View, links
from polysem.store.tables import PRESETS

Preset = Literal["strict", "paper", "both"]
Row = dict[str, object]
Question = Literal["slope_b", "slope_a", "mean", "difference"]


class Choices(NamedTuple):
    """How a question is answered; the defaults are the paper's."""

    outcome: Outcome = "relative"
    cases: Literal["improved", "all"] = "improved"
    selection: Selection = "reported"
    sign: Sign = "free"
    control: Literal["one_random", "all_random", "matched"] = "one_random"
    errors: Literal["trials", "clustered"] = "trials"


CHANGES: tuple[tuple[str, str], ...] = (
    ("cases", "all"),
    ("selection", "select"),
    ("dose", "fixed"),
    ("sign", "odd"),
    ("outcome", "logodds"),
    ("draws", "all_random"),
    ("control", "matched"),
    ("errors", "clustered"),
)
"""The changes in the order of a walk, by name and new value."""
_FIELDS = {"dose": "selection", "draws": "control"}
_ASKED: dict[Question, frozenset[str]] = {
    "slope_b": frozenset({"selection", "dose", "sign", "outcome", "errors"}),
    "slope_a": frozenset({"selection", "dose", "sign", "outcome", "errors"}),
    "mean": frozenset({"cases", "selection", "dose", "sign", "outcome", "errors"}),
    "difference": frozenset(name for name, _ in CHANGES),
}
_CONTROLS = {
    "feature": ("isotropic", "random_direction"),
    "gradient": ("isotropic", "random_direction"),
    "prompt": ("random_feature", "random_feature"),
    "neuron": ("rotated", "rotated"),
}
"""the paper's random arm and the strict one, by locus"""
_UNITS: dict[Outcome, str] = {"after": "cosine", "relative": "relative change", "logodds": "nats"}
_OPTIMISM = (
    ("best_per_prompt", "best strength of each reported prompt, all cases"),
    ("best_on_select", "best strength of each pair on the select prompts, its value there"),
    ("same_on_confirm", "the same strength on the confirm prompts"),
    ("optimism_per_prompt", "best_per_prompt minus same_on_confirm"),
    ("optimism_per_pair", "best_on_select minus same_on_confirm"),
)
_PROMPT_NOTE = "one candidate a prompt: the paper kept the best of hand-made ones, which are not known"
_NEURON_NOTE = "the paper makes no regression on neurons; the choices of its feature runs are applied"


class _Scene(NamedTuple):
    """Everything that an estimate of one locus and token set reads."""

    view: View
    grid: Grid
    token_set: str

    @property
    def start(self) -> Start:
        return "baseline" if self.view.locus == "gradient" else "zero"


def compare_presets(joined: pa.Table, views: Sequence[View], *, preset: Preset) -> pa.Table:
    """PRESETS.

    Args:
        joined: plan and trials, from `join_trials`.
        views: the arms of every locus at its headline dose.
        preset: `both` gives walks and single changes, `paper` the paper's end of them, `strict` no row.
    """
    rows: list[Row] = []
    if preset != "strict":
        for view in views:
            for token_set in sorted(set(view.columns["token_set"].tolist())):
                scene = _Scene(view, Grid.of(joined, view, token_set=token_set), token_set)
                rows += _scene_rows(scene, preset=preset)
    return PRESETS.conform(pa.Table.from_pylist(rows, schema=PRESETS.arrow()))


def strict_row(table: pa.Table, *, locus: str, token_set: str, question: Question) -> Row:
    """The last step of a walk for pairs: the strict estimate."""
    wanted = {
        "locus": locus,
        "token_set": token_set,
        "question": question,
        "relation": "pair",
        "path": "walk",
    }
    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name], value))
    return max(table.to_pylist(), key=lambda row: row["step"])


def _scene_rows(scene: _Scene, *, preset: Preset) -> Iterator[Row]:
    present = sorted(set(scene.view.columns["relation"].tolist()))
    if "pair" in present:
        for question in ("slope_b", "slope_a", "difference"):
            yield from _walk(scene, question, "pair", preset=preset)
    for relation in present:
        yield from _walk(scene, "mean", relation, preset=preset)
        yield from _optimism(scene, relation)


def _walk(scene: _Scene, question: Question, relation: str, *, preset: Preset) -> Iterator[Row]:
    """The paper's estimate; then, for both presets, every change on top of the others and by itself."""
    paper = Choices(outcome="after" if question == "slope_a" else "relative")
    yield _row(scene, question, relation, paper, path="walk", step=0, choice="paper")
    if preset == "paper":
        return
    same_control = len(set(_CONTROLS[scene.view.locus])) == 1
    changes = [
        (name, value)
        for name, value in CHANGES
        if name in _ASKED[question] and not (same_control and name == "control")
    ]
    so_far = paper
    for step, (name, value) in enumerate(changes, start=1):
        change = {_FIELDS.get(name, name): value}
        so_far = so_far._replace(**change)
        yield _row(scene, question, relation, so_far, path="walk", step=step, choice=name)
        alone = paper._replace(**change)
        yield _row(scene, question, relation, alone, path="alone", step=step, choice=name)


def _row(
    scene: _Scene, question: Question, relation: str, choices: Choices, *, path: str, step: int, choice: str
) -> Row:
    cells = _effects(scene, choices)
    if question in ("slope_a", "slope_b"):
        found = _slope(scene, cells, choices)
    elif question == "mean":
        found = _mean(scene, cells, choices, relation=relation)
    else:
        found = _difference(scene, cells, choices)
    unit = _UNITS[choices.outcome] + (" per cosine" if question in ("slope_a", "slope_b") else "")
    notes = (found.note, *_locus_notes(scene, choices))
    return _made(
        scene, question, relation, found, path=path, step=step, choice=choice, unit=unit, notes=notes
    )


class _Found(NamedTuple):
    """A coefficient and what it rests on."""

    regression: Regression
    which: int
    arms: Bool[np.ndarray, " arms"]
    """arms that enter"""
    n_rows: int
    """rows that count as independent, or as clusters' members"""
    method: str
    note: str = ""


def _effects(scene: _Scene, choices: Choices) -> Cells:
    return effects_of(
        scene.grid,
        outcome=choices.outcome,
        selection=choices.selection,
        sign=choices.sign,
        dose=scene.view.dose,
        start=scene.start,
        only_positive=scene.view.locus == "prompt",
    )


def _slope(scene: _Scene, cells: Cells, choices: Choices) -> _Found:
    """Coefficient of interference of the pairs: outcome ~ interference + similarity (+ c before) + layer type."""
    c, view = scene.view.columns, scene.view
    arms = view.where(token_set=scene.token_set, relation="pair")
    arms &= np.isfinite(c["interference"]) & np.isfinite(c["similarity"])
    rows, arm, y, base = _rows_of(scene, cells, arms, choices)
    numbers = {"interference": c["interference"][arm], "similarity": c["similarity"][arm]}
    if choices.outcome == "after":
        numbers["c before"] = base
    levels = sorted(set(c["layer_type"][arm].tolist()))
    numbers |= {f"layer {level}": (c["layer_type"][arm] == level).astype(np.float64) for level in levels[1:]}
    constant = [n for n, v in numbers.items() if len(v) and np.ptp(v) <= 1e-12 * np.abs(v).max()]
    kept = {n: v for n, v in numbers.items() if n not in constant}
    if "interference" in constant:
        nan = np.full(2, np.nan)
        reason = "interference does not vary"
        return _Found(
            Regression(nan, nan, nan, nan, nan, df=nan, reason=reason, remark=""), 1, arms, rows, ""
        )
    design = np.column_stack([np.ones(len(y)), *kept.values()])
    regression = _regress(scene, y, design, arm, choices)
    formula = " + ".join(n for n in ("interference", "similarity", "c before") if n in kept)
    said = "; ".join(f"{n} does not vary and is left out" for n in constant)
    formula += " + layer type" if len(levels) > 1 else ""
    return _Found(regression, 1, _among(arms, arm), rows, f"OLS on {formula}", said)


def _mean(scene: _Scene, cells: Cells, choices: Choices, *, relation: str) -> _Found:
    arms = scene.view.where(token_set=scene.token_set, relation=relation)
    rows, arm, y, _ = _rows_of(scene, _cases(cells, choices), arms, choices)
    regression = _regress(scene, y, np.ones((len(y), 1)), arm, choices)
    return _Found(regression, 0, _among(arms, arm), rows, "mean")


def _difference(scene: _Scene, cells: Cells, choices: Choices) -> _Found:
    """Pairs minus the random arm: Welch on trials, or within targets with clustered errors."""
    view = scene.view
    loose, strict = _CONTROLS[view.locus]
    relation = strict if choices.control == "matched" else loose
    pairs = view.where(token_set=scene.token_set, relation="pair")
    controls = view.where(token_set=scene.token_set, relation=relation)
    if not controls.any():
        nan = np.full(1, np.nan)
        reason = f"no {relation} arm is planned: add {relation!r} to plan.controls"
        return _Found(Regression(nan, nan, nan, nan, nan, df=nan, reason=reason, remark=""), 0, pairs, 0, "")
    if choices.control == "one_random":
        controls &= _first_draw(view, controls)
    chosen = _cases(cells, choices)
    rows, arm, y, _ = _rows_of(scene, chosen, pairs | controls, choices)
    mine = pairs[arm]
    note = f"{len(np.unique(arm[mine]))} pairs against {len(np.unique(arm[~mine]))} {relation}"
    if choices.errors == "trials":
        regression = welch(y[mine], y[~mine], level=view.level)
        return _Found(regression, 0, _among(pairs | controls, arm), rows, "Welch's t", note)
    target = view.clusters[arm, 0]
    keep = np.isin(target, np.intersect1d(target[mine], target[~mine]))
    arm, y, mine, target = arm[keep], y[keep], mine[keep], target[keep]
    regression = _regress(
        scene,
        within(y[:, None], target)[:, 0],
        within(mine[:, None].astype(np.float64), target),
        arm,
        choices,
    )
    return _Found(regression, 0, _among(pairs | controls, arm), len(arm), "within targets", note)


def _rows_of(
    scene: _Scene, cells: Cells, arms: Bool[np.ndarray, " arms"], choices: Choices
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """(number, arm, outcome, c before) of the rows of a regression: trials, or means over the prompts of an arm."""
    good = arms[cells.arm] & np.isfinite(cells.values)
    here = Cells(cells.arm[good], cells.values[good], cells.base[good])
    if choices.errors == "trials":
        return len(here.arm), here.arm, here.values, here.base
    n = len(arms)
    y, base = means_by_arm(here, n), means_by_arm(here._replace(values=here.base), n)
    kept = np.flatnonzero(np.isfinite(y))
    return len(kept), kept, y[kept], base[kept]


def _regress(
    scene: _Scene, y: np.ndarray, design: np.ndarray, arm: np.ndarray, choices: Choices
) -> Regression:
    if choices.errors == "trials":
        return plain_ols(y, design, level=scene.view.level)
    used = np.zeros(len(scene.view.clusters), dtype=bool)
    used[arm] = True  # rows are in the order of arms, once each
    return scene.view.regress(y, design, used)


def _cases(cells: Cells, choices: Choices) -> Cells:
    if choices.cases == "all":
        return cells
    improved = cells.values > 0
    return Cells(cells.arm[improved], cells.values[improved], cells.base[improved])


def _first_draw(view: View, controls: Bool[np.ndarray, " arms"]) -> Bool[np.ndarray, " arms"]:
    """The first control of every target."""
    rows = np.flatnonzero(controls)
    _, first = np.unique(view.clusters[rows, 0], return_index=True)
    chosen = np.zeros(len(controls), dtype=bool)
    chosen[rows[first]] = True
    return chosen


def _among(arms: Bool[np.ndarray, " arms"], used: np.ndarray) -> Bool[np.ndarray, " arms"]:
    chosen = np.zeros(len(arms), dtype=bool)
    chosen[used] = True
    return chosen & arms


def _optimism(scene: _Scene, relation: str) -> Iterator[Row]:
    """What choosing the strength adds to the mean relative change, for one relation."""
    arms = scene.view.where(token_set=scene.token_set, relation=relation)
    free = Choices(cases="all")
    n = len(arms)
    best = means_by_arm(_effects(scene, free), n)
    held = means_by_arm(_effects(scene, free._replace(selection="select")), n)
    inside = effects_of(
        scene.grid,
        outcome="relative",
        selection="select",
        sign="free",
        dose=scene.view.dose,
        start=scene.start,
        only_positive=scene.view.locus == "prompt",
        on="select",
    )
    seen = means_by_arm(inside, n)
    columns = dict(
        zip((name for name, _ in _OPTIMISM), (best, seen, held, best - held, seen - held), strict=True)
    )
    used = arms & np.isfinite(best) & np.isfinite(held) & np.isfinite(seen)
    for step, (name, about) in enumerate(_OPTIMISM):
        regression = scene.view.regress(columns[name][used], np.ones((int(used.sum()), 1)), used)
        found = _Found(regression, 0, used, int(used.sum()), about)
        yield _made(
            scene, "mean", relation, found, path="optimism", step=step, choice=name, unit="relative change"
        )


def _locus_notes(scene: _Scene, choices: Choices) -> tuple[str, ...]:
    locus = scene.view.locus
    said = (_PROMPT_NOTE,) if locus == "prompt" and choices.selection == "reported" else ()
    return (*said, _NEURON_NOTE) if locus == "neuron" else said


def _made(
    scene: _Scene,
    question: Question,
    relation: str,
    found: _Found,
    *,
    path: str,
    step: int,
    choice: str,
    unit: str,
    notes: Sequence[str] = (),
) -> Row:
    view, r = scene.view, found.regression
    numbers = {k: _number(getattr(r, k)[found.which]) for k in ("estimate", "se", "lo", "hi", "p")}
    clustered = path == "optimism" or choice == "errors"
    errors = (
        f"clustered by target and source ({links(view.clusters[found.arms])})" if clustered else "every trial"
    )
    said = (f"not estimated: {r.reason}" if r.reason else "", r.remark, *notes)
    return {
        "locus": view.locus,
        "token_set": scene.token_set,
        "question": question,
        "relation": relation,
        "path": path,
        "step": step,
        "choice": choice,
        **numbers,
        "level": view.level,
        "unit": unit,
        "method": f"{found.method}; {errors}" if found.method else "",
        "n_rows": found.n_rows,
        "n_pairs": int(found.arms.sum()),
        "n_targets": len(np.unique(view.clusters[found.arms, 0])),
        "n_doses": len(scene.grid.doses) // (2 if view.locus == "prompt" else 1),
        "note": "; ".join(s for s in said if s) or None,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
