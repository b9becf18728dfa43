"""What an estimate of the presets table rests on: the outcomes of one locus and token set, under some choices.

The paper's end of a walk reads the trials at the paper's own strengths (`paper/strengths.py`) where the plan has
them, and those of the study otherwise; the strict end reads the study's own. So the one change `dose`, from a strength
that is searched for to one dose for all, is also the change from the paper's way of pushing to the study's.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from polysem.paper.grid import Cells, Grid, Outcome, Selection, Sign, Start, effects_of
from polysem.stats.arms import PRIMARY, outcome_of
from polysem.stats.regress import Regression
from polysem.stats.rows import View, links, number

Row = dict[str, object]
Question = Literal["slope_b", "slope_a", "mean", "difference"]
_NOTES: Mapping[str, str] = {
    "clamp": "the paper does not clamp: the choices of its feature runs are applied to the study's own values",
    "neuron": "the paper makes no regression on neurons: the choices of its feature runs are applied",
    "mlp_neuron": "the paper's neurons are coordinates: its choices are applied to the study's own doses",
}
_PROMPT_NOTE = "one candidate a prompt: the paper kept the best of hand-made ones, which are not known"


class Choices(NamedTuple):
    """How a question is answered; the defaults are the paper's."""

    outcome: Outcome = "relative"
    cases: Literal["improved", "all"] = "improved"
    budget: Literal["level", "equal"] = "level"
    """gradients: whether all vectors of a bin are searched together, and controls with one, or every vector by itself"""
    selection: Selection = "reported"
    sign: Sign = "free"
    control: Literal["one_random", "all_random", "matched"] = "one_random"
    model: Literal["plain", "record"] = "plain"
    """plain: interference and similarity. record: inside targets, with the covariates of the regression of record"""
    errors: Literal["trials", "clustered"] = "trials"


class PaperScene(NamedTuple):
    """Everything that an estimate of one locus and token set reads."""

    view: View
    own: Grid
    """at the study's own strengths"""
    paper: Grid | None
    """at the paper's; None where the plan has none"""
    lost: str
    """how many trials at the paper's strengths have no outcome, and why; "" if all have one"""
    token_set: str

    @classmethod
    def of(cls, own: pa.Table, paper: pa.Table, view: View, *, token_set: str) -> "PaperScene":
        """The scene of a locus, from plan joined with trials, at the study's own and at the paper's strengths."""
        here = pc.and_(pc.equal(paper["locus"], view.locus), pc.equal(paper["token_set"], token_set))
        rows = paper.filter(here)
        # Where the locus has no number of what is asked of the token set, plain log-odds stand in, as in the report.
        numbers = view.columns[outcome_of(token_set)][view.where(token_set=token_set)]
        asked = outcome_of(token_set) if np.isfinite(numbers).any() else PRIMARY
        return cls(
            view,
            Grid.of(own, view, token_set=token_set, outcome=asked),
            Grid.of(rows, view, token_set=token_set, outcome=asked) if rows.num_rows else None,
            lost(rows),
            token_set,
        )

    @property
    def searched(self) -> Grid:
        """The strengths that the paper's way chooses among."""
        return self.own if self.paper is None else self.paper

    @property
    def start(self) -> Start:
        return "baseline" if self.view.locus == "gradient" else "zero"

    @property
    def only_positive(self) -> bool:
        return self.view.locus == "prompt"

    @property
    def n_strengths(self) -> int:
        """Signed strengths a prompt among which the paper's way chooses."""
        doses = self.searched.doses
        return int((doses > 0).sum()) if self.only_positive else len(doses)

    def compared(self, relation: str) -> bool:
        """Whether arms of a relation were pushed by the strengths that the paper's way chooses among."""
        arms = self.searched.arm
        return bool((self.view.columns["relation"][arms[arms >= 0]] == relation).any())

    def effects(self, choices: Choices, *, on: Literal["confirm", "select"] = "confirm") -> Cells:
        """One number per cell of a split, under some choices."""
        return effects_of(
            self.own if choices.selection == "fixed" else self.searched,
            outcome=choices.outcome,
            selection=choices.selection,
            sign=choices.sign,
            dose=self.view.dose,
            start=self.start,
            only_positive=self.only_positive,
            level=self.levels if choices.budget == "level" else None,
            on=on,
        )

    @property
    def levels(self) -> Int[np.ndarray, " arms"] | None:
        """Target and interference bin of every pair, numbered, -1 for other arms; None where every arm is searched by
        itself, as everywhere but with gradients."""
        if self.view.locus != "gradient":
            return None
        c = self.view.columns
        names = np.stack([self.view.clusters[:, 0], c["interference_bin"].astype(np.int64)])
        code = np.unique(names, axis=1, return_inverse=True)[1].ravel().astype(np.int64)
        return np.where(c["relation"] == "pair", code, -1)

    def notes(self, choices: Choices) -> tuple[str, ...]:
        """What must be said next to a number of this locus."""
        locus = self.view.locus
        said = [_PROMPT_NOTE] if locus == "prompt" and choices.selection == "reported" else []
        said += [_NOTES[locus]] if locus in _NOTES else []
        return (*said, self.lost) if self.lost and choices.selection != "fixed" else tuple(said)


def lost(rows: pa.Table) -> str:
    """How many trials at the paper's strengths have no outcome, and why; "" where all have one."""
    bad = rows.filter(pc.not_equal(rows["status"], "ok"))
    if not bad.num_rows:
        return ""
    counts = pc.value_counts(pc.fill_null(bad["reason"], "not run yet")).to_pylist()
    reasons = ", ".join(f"{c['counts']} {c['values']}" for c in sorted(counts, key=lambda c: c["values"]))
    return f"{bad.num_rows} of {rows.num_rows} trials at the paper's strengths have no outcome: {reasons}"


class Found(NamedTuple):
    """A coefficient and what it rests on."""

    regression: Regression
    which: int
    arms: Bool[np.ndarray, " arms"]
    """arms that enter"""
    n_rows: int
    """rows that count as independent, or as clusters' members"""
    method: str
    note: str = ""


class Step(NamedTuple):
    """Where a row of PRESETS stands."""

    path: str
    step: int
    choice: str


def preset_row(scene: PaperScene, found: Found, at: Step, *, notes: Sequence[str] = ()) -> Row:
    """One row of PRESETS but for its question, relation, outcome and unit."""
    view, r = scene.view, found.regression
    numbers = {k: number(getattr(r, k)[found.which]) for k in ("estimate", "se", "lo", "hi", "p")}
    clustered = at.path == "optimism" or at.choice == "errors"
    errors = (
        f"clustered by target and source ({links(view.clusters[found.arms])})" if clustered else "every trial"
    )
    said = (f"not estimated: {r.reason}" if r.reason else "", r.remark, found.note, *notes)
    return {
        "locus": view.locus,
        "token_set": scene.token_set,
        **at._asdict(),
        **numbers,
        "level": view.level,
        "method": f"{found.method}; {errors}" if found.method else "",
        "n_rows": found.n_rows,
        "n_pairs": int(found.arms.sum()),
        "n_targets": len(np.unique(view.clusters[found.arms, 0])),
        "n_doses": scene.n_strengths,
        "note": "; ".join(s for s in said if s) or None,
    }
