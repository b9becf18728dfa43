"""The paper's estimate, the strict one, and the way from one to the other, on the same pairs and prompts.

Each question is answered with every choice that arXiv 2505.11611 and its code make, and then again with one choice
after another replaced by a defensible one, until what is left is the strict estimate of the effects table. The
`walk` changes them one after the other, so that its steps add up; `alone` changes each by itself. A walk depends on
its order, which is always that of `CHANGES`: where a step's size differs from that of the change alone, choices
interact and neither number is the share of that choice.

Both ends use confirm prompts: the paper's way chooses and reports on them, the strict way chooses on the others.
`rise` and `drop` are of the paper's own neurons, by degree (`paper/degree.py`). Questions: `slope_b` and `slope_a`, the coefficient of interference in Models B and A (protocol 4.1); `mean`, the
mean effect of a relation; `difference`, pairs minus random. What cannot be estimated is a row with the reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from polysem.paper.degree import degree_rows
from polysem.paper.estimators import plain_ols, welch
from polysem.paper.grid import Cells, Outcome, means_by_arm
from polysem.paper.optimism import optimism
from polysem.paper.scene import Choices, Found, PaperScene, Question, Row, Step, preset_row
from polysem.plan.strengths import paper_neurons, paper_strengths
from polysem.stats.contrasts import RECORD, coefficient, fitted
from polysem.stats.regress import Regression, varies, within
from polysem.stats.rows import POOLED, View
from polysem.store.tables import PRESETS

CHANGES: tuple[tuple[str, str], ...] = (
    ("cases", "all"),
    ("budget", "equal"),
    ("selection", "select"),
    ("dose", "fixed"),
    ("sign", "odd"),
    ("outcome", "logodds"),
    ("draws", "all_random"),
    ("control", "matched"),
    ("model", "record"),
    ("errors", "clustered"),
)
"""The changes in the order of a walk, by name and new value."""
_FIELDS = {"dose": "selection", "draws": "control"}
_ASKED: dict[Question, frozenset[str]] = {
    "slope_b": frozenset({"budget", "selection", "dose", "sign", "outcome", "model", "errors"}),
    "slope_a": frozenset({"budget", "selection", "dose", "sign", "outcome", "model", "errors"}),
    "mean": frozenset({"cases", "budget", "selection", "dose", "sign", "outcome", "errors"}),
    "difference": frozenset(name for name, _ in CHANGES) - {"model"},
}
_CONTROLS = {
    "feature": ("isotropic", "random_direction"),
    "gradient": ("isotropic", "random_direction"),
    "clamp": ("random_feature", "random_feature"),
    "prompt": ("random_feature", "random_feature"),
    "neuron": ("rotated", "rotated"),
    "mlp_neuron": ("rotated", "rotated"),
}
"""the paper's random arm and the strict one, by locus"""
_UNITS: dict[Outcome, str] = {"after": "cosine", "relative": "relative change", "logodds": "nats"}


@dataclass(frozen=True)
class PaperEstimates:
    """The paper's estimates beside those of a study: two regressions, and the table PRESETS.

    `both` gives walks and single changes, `paper` the paper's end of them, `strict` no row of PRESETS.
    """

    preset: str = "strict"

    def rows(self, view: View, *, sae: str, tokens: str) -> Iterator[Row]:
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
            yield coefficient(
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

    def tables(self, own: pa.Table, whole: pa.Table, views: Sequence[View]) -> dict[str, pa.Table]:
        """PRESETS, from plan joined with trials, at the study's own strengths and at all."""
        paper = paper_strengths(whole)
        rows: list[Row] = []
        for view in views if self.preset != "strict" else ():
            for token_set in sorted(set(view.columns["token_set"].tolist())):
                scene = PaperScene.of(own, paper, view, token_set=token_set)
                rows += _scene_rows(scene, preset=self.preset)
        for view in views[:1] if self.preset != "strict" else ():
            rows += degree_rows(paper_neurons(whole), level=view.level)
        return {"presets": PRESETS.of(rows)}


def _scene_rows(scene: PaperScene, *, preset: str) -> Iterator[Row]:
    present = sorted(set(scene.view.columns["relation"].tolist()))
    if "pair" in present:
        for question in ("slope_b", "slope_a", "difference"):
            yield from _walk(scene, question, "pair", preset=preset)
    for relation in filter(scene.compared, present):
        yield from _walk(scene, "mean", relation, preset=preset)
        yield from optimism(scene, relation)


def _walk(scene: PaperScene, question: Question, relation: str, *, preset: str) -> Iterator[Row]:
    """The paper's estimate; then, for both presets, every change on top of the others and by itself."""
    paper = Choices(outcome="after" if question == "slope_a" else "relative")
    yield _row(scene, question, relation, paper, Step("walk", 0, "paper"))
    if preset == "paper":
        return
    same_control = len(set(_CONTROLS[scene.view.locus])) == 1
    changes = [
        (name, value)
        for name, value in CHANGES
        if name in _ASKED[question]
        and not (same_control and name == "control")
        and not (scene.levels is None and name == "budget")
    ]
    so_far = paper
    for step, (name, value) in enumerate(changes, start=1):
        change = {_FIELDS.get(name, name): value}
        so_far = so_far._replace(**change)
        yield _row(scene, question, relation, so_far, Step("walk", step, name))
        yield _row(scene, question, relation, paper._replace(**change), Step("alone", step, name))


def _row(scene: PaperScene, question: Question, relation: str, choices: Choices, step: Step) -> Row:
    cells = scene.effects(choices)
    if question in ("slope_a", "slope_b"):
        found = _slope(scene, cells, choices)
    elif question == "mean":
        found = _mean(scene, cells, choices, relation=relation)
    else:
        found = _difference(scene, cells, choices)
    unit = _UNITS[choices.outcome] + (" per cosine" if question in ("slope_a", "slope_b") else "")
    outcome = scene.own.asked if choices.outcome == "logodds" else choices.outcome
    key = {"question": question, "relation": relation, "outcome": outcome, "unit": unit}
    return key | preset_row(scene, found, step, notes=scene.notes(choices))


def _slope(scene: PaperScene, cells: Cells, choices: Choices) -> Found:
    """Coefficient of interference of the pairs: outcome ~ interference + similarity (+ c before) + layer type, or inside
    targets with the covariates of record."""
    record = choices.model == "record"
    c, view = scene.view.columns, scene.view
    arms = view.where(token_set=scene.token_set, relation="pair")
    known = _among(arms, cells.arm[np.isfinite(cells.values)])
    regressors, factor = (RECORD, "target") if record else (("interference", "similarity"), "layer_type")
    made = fitted(view, known, regressors, wanted="interference", factor=factor)
    rows, arm, y, base = _rows_of(scene, cells, _among(known, made.rows), choices)
    design, names = made.x[np.searchsorted(made.rows, arm)], list(made.names)
    said = list(made.notes)
    target = view.clusters[arm, 0]
    if record:
        y = within(y[:, None], target)[:, 0]
        design = within(design, target)
    if choices.outcome == "after":
        before = within(base[:, None], target)[:, 0] if record else base
        if varies(before) and np.linalg.norm(before) > 1e-9:
            design = np.column_stack([design, before])
            names.append("c before")
        else:
            said.append("c before does not vary and is left out")
    if made.reason:
        return Found(Regression.none(1, made.reason), 0, arms, rows, "")
    regression = _regress(scene, y, design, arm, choices)
    levels = len(set(c["layer_type"][arm].tolist()))
    formula = " + ".join(names) + (" + targets" if record else " + layer type" if levels > 1 else "")
    return Found(regression, made.which, _among(arms, arm), rows, f"OLS on {formula}", "; ".join(said))


def _mean(scene: PaperScene, cells: Cells, choices: Choices, *, relation: str) -> Found:
    arms = scene.view.where(token_set=scene.token_set, relation=relation)
    rows, arm, y, _ = _rows_of(scene, _cases(cells, choices), arms, choices)
    regression = _regress(scene, y, np.ones((len(y), 1)), arm, choices)
    return Found(regression, 0, _among(arms, arm), rows, "mean")


def _difference(scene: PaperScene, cells: Cells, choices: Choices) -> Found:
    """Pairs minus the random arm: Welch on trials, or within targets with clustered errors."""
    view = scene.view
    loose, strict = _CONTROLS[view.locus]
    relation = strict if choices.control == "matched" else loose
    pairs = view.where(token_set=scene.token_set, relation="pair")
    controls = view.where(token_set=scene.token_set, relation=relation)
    if not controls.any():
        reason = f"no {relation} arm is planned: add {relation!r} to plan.controls"
        return Found(Regression.none(1, reason), 0, pairs, 0, "")
    if choices.control == "one_random":
        controls &= _first_draw(view, controls)
    chosen = _cases(cells, choices)
    rows, arm, y, _ = _rows_of(scene, chosen, pairs | controls, choices)
    mine = pairs[arm]
    note = f"{len(np.unique(arm[mine]))} pairs against {len(np.unique(arm[~mine]))} {relation}"
    if choices.errors == "trials":
        regression = welch(y[mine], y[~mine], level=view.level)
        return Found(regression, 0, _among(pairs | controls, arm), rows, "Welch's t", note)
    target = view.clusters[arm, 0]
    keep = np.isin(target, np.intersect1d(target[mine], target[~mine]))
    arm, y, mine, target = arm[keep], y[keep], mine[keep], target[keep]
    y, is_pair = within(np.column_stack([y, mine]), target).T
    regression = _regress(scene, y, is_pair[:, None], arm, choices)
    return Found(regression, 0, _among(pairs | controls, arm), len(arm), "within targets", note)


def _rows_of(
    scene: PaperScene, cells: Cells, arms: Bool[np.ndarray, " arms"], choices: Choices
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
    scene: PaperScene, y: np.ndarray, design: np.ndarray, arm: np.ndarray, choices: Choices
) -> Regression:
    if choices.errors == "trials":
        return plain_ols(y, design, level=scene.view.level)
    # rows are in the order of arms, once each
    used = _among(np.ones(len(scene.view.clusters), dtype=bool), arm)
    strict = (choices.outcome, choices.selection, choices.sign) == ("logodds", "fixed", "odd")
    return scene.view.regress(y, design, used, outcome=scene.own.asked if strict else "")


def _cases(cells: Cells, choices: Choices) -> Cells:
    if choices.cases == "all":
        return cells
    improved = cells.values > 0
    return Cells(cells.arm[improved], cells.values[improved], cells.base[improved])


def _first_draw(view: View, controls: Bool[np.ndarray, " arms"]) -> Bool[np.ndarray, " arms"]:
    """The first control of every target."""
    rows = np.flatnonzero(controls)
    return _among(controls, rows[np.unique(view.clusters[rows, 0], return_index=True)[1]])


def _among(arms: Bool[np.ndarray, " arms"], used: np.ndarray) -> Bool[np.ndarray, " arms"]:
    """Those of `arms` that are among the rows used."""
    chosen = np.zeros(len(arms), dtype=bool)
    chosen[used] = True
    return chosen & arms
