"""The paper's claims, the numbers that answer each on real models, and the rule that makes a verdict of an interval."""

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

from polysem.report import words
from polysem.report.text import count, p_value
from polysem.stats.rows import POOLED

Row = dict[str, Any]
Kept = dict[str, list[Row]]
"""table -> its rows"""
STUDIES = {
    "presets": "run",
    "sites": "run",
    "transfer-zoo": "transfer",
    "transfer-real": "transfer",
    "transfer-between": "transfer",
}
"""study files in studies/real, in the order in which `make real` runs them, and the verb"""
MIDDLE = "blocks.14.hook_resid_post"
OTHER_SEED = f"{MIDDLE}-2"
"""the second dictionary of a site is labelled so"""
FLOOR = 0.3
"""interference from which pairs are counted"""
LEVEL = 0.05
HOLDS, SHORT, AGAINST, NULL, OPEN, NONE = (
    "holds", "holds, short of *predicts*", "the opposite", "too small to matter", "not resolved", "not run",
)  # fmt: skip
BENT = "not flat"
DECLARED = {
    "slope_interference": "slope on interference",
    "geometry_effect": "angle alone: random directions at the pairs' cosines − random features",
    "pair_minus_cosine_matched": "beyond the angle: pairs − random directions at their cosines",
    "sign_agreement": "share of pairs that move the way their sign says (chance: 0.5)",
}

_SAID = {
    "smollm2": "SmolLM2",
    "gemma3": "Gemma 3",
    "gpt2": "the zoo's GPT-2",
    "neox": "the zoo's NeoX",
    "llama": "the zoo's Llama",
}
INSIDE = "transfer-between"
"""the study whose targets are its own sources"""
_TRANSFER = ", ".join(name for name, kind in STUDIES.items() if kind == "transfer" and name != INSIDE)


class Line(NamedTuple):
    """One number of a claim."""

    what: str
    estimate: float | None
    lo: float | None
    hi: float | None
    unit: str
    n: str
    verdict: str


class Claim(NamedTuple):
    """What the paper says, and what answers it."""

    said: str
    where: str
    lines: Callable[[Kept], list[Line]]
    made_by: str
    note: str = ""


def verdict(row: Mapping[str, Any], *, null: float = 0.0, p: str | None = None) -> str:
    """Of an estimate above whose null the claim lies. A declared contrast goes by its claim, one of several by its adjusted p;
    whatever is neither goes by its interval alone."""
    claim = row.get("claim") if row.get("declared") else None
    if row["estimate"] is None or row["lo"] is None or row["hi"] is None:
        return "no interval"
    beyond = row["lo"] > null or row["hi"] < null
    if claim in ("no_effect", "too_small"):
        return NULL
    if claim is not None:
        beyond = claim in ("predicts", "associated")
    elif p is not None:
        beyond = beyond and row[p] is not None and row[p] < LEVEL
    if not beyond:
        return OPEN
    return AGAINST if row["estimate"] < null else SHORT if claim == "associated" else HOLDS


def rows_in(kept: Kept, table: str, **parts: object) -> list[Row]:
    """The rows of a table whose columns have these values."""
    return [r for r in kept.get(table, []) if all(r[k] == v for k, v in parts.items())]


def _line(what: str, row: Row, *, null: float = 0.0, p: str | None = None, value: str = "estimate") -> Line:
    alone = row.get("contrast") in (None, "sign_agreement", "slope_interference", "slope_interference_alone")
    nouns = {"n_pairs": "pairs" if alone and "question" not in row else "arms", "n_targets": "targets"}
    nouns |= {"n_reference": "reference pools", "n_neurons": "neurons"}
    counted = [f"{count(row[name])} {noun}" for name, noun in nouns.items() if row.get(name)]
    known = {"estimate": row[value], "lo": row["lo"], "hi": row["hi"]}
    if row.get("declared") and row["p_adj"] is not None:
        counted.append(f"adjusted p {p_value(row['p_adj'])}")
    unit = row.get("unit") or ("times" if value == "ratio" else "")
    return Line(what, *known.values(), unit, ", ".join(counted), verdict(row | known, null=null, p=p))


def tokens_of(row: Row) -> str:
    """What is read, in words."""
    return f"{words.tokens(row['tokens'])}{'' if row.get('outcome') in (None, 'logodds') else ', ' + words.outcome(row['outcome'])}"


def _percent(line: Line) -> Line:
    """A relative change in per cent."""
    ends = (None if v is None else 100 * v for v in (line.estimate, line.lo, line.hi))
    return Line(line.what, *ends, "%", line.n, line.verdict)


def place(name: str) -> str:
    """A label as a place."""
    if name == POOLED:
        return "together"
    seed = ", second seed" if name == OTHER_SEED else ""
    return (
        name.removesuffix("-2" if seed else "").removeprefix("blocks.").replace(".hook_resid_post", "") + seed
    )


def shared_directions(kept: Kept) -> list[Line]:
    """Pairs of unlike glosses above FLOOR over all pairs that directions of the same covariance give; without an interval."""
    found = []
    for row in rows_in(kept, "spectrum", threshold=FLOOR):
        ratio = float(f"{row['n_unrelated'] / row['n_covariance']:.2g}")
        said = f"{count(row['n_unrelated'])} pairs with unlike glosses, of {count(row['n_pairs'])}; by chance {count(row['n_covariance'])} of any"
        found.append(
            Line(
                f"{row['study']}: block {place(row['sae'])}",
                ratio,
                None,
                None,
                "times chance",
                said,
                HOLDS if ratio > 1 else "no more than chance",
            )
        )
    return found


def contrasts(
    studies: str, locus: str, *names: str, saes: bool = False, flat: bool = False
) -> Callable[[Kept], list[Line]]:
    """Contrasts of one or two studies at a locus, of all SAEs together or of each. `flat`: the claim is that there is nothing."""
    several = " " in studies

    def lines(kept: Kept) -> list[Line]:
        found = []
        for name, study in product(names, studies.split()):
            for row in rows_in(kept, "effects", study=study, locus=locus, contrast=name):
                if (row["sae"] == POOLED) == saes or (row["outcome"] != "logodds" and not row["declared"]):
                    continue
                told = f"{study}: " if several else f"block {place(row['sae'])}: " if saes else ""
                what = f"{told}{DECLARED.get(name) or words.contrast(name).label}; {tokens_of(row)}"
                line = _line(what, row, null=0.5 if name == "sign_agreement" else 0.0)
                found.append(line._replace(verdict=_flat(row)) if flat else line)
        return found

    return lines


def _flat(row: Row) -> str:
    """The verdict where the claim is that there is nothing: equivalence holds it up, an interval without zero knocks it down."""
    if row["p_equivalent"] is not None and row["p_equivalent"] < LEVEL:
        return HOLDS
    return OPEN if row["lo"] is None or row["lo"] <= 0 <= row["hi"] else BENT


def strengths(locus: str, said: float) -> Callable[[Kept], list[Line]]:
    """Size at the locus over that of feature directions, at one KL; `said` is the paper's number."""

    def lines(kept: Kept) -> list[Line]:
        found = []
        for found_row in rows_in(kept, "budgets", locus=locus):
            # Without an upper end where some draws have nothing to divide by.
            endless = found_row["lo"] is not None and found_row["hi"] is None
            row = found_row | ({"hi": math.inf} if endless else {})
            inside = row["lo"] is not None and row["lo"] <= said <= row["hi"]
            line = _line(
                f"{words.locus(locus)} over {words.locus(row['reference']).lower()}; {tokens_of(row)}",
                row,
                value="ratio",
            )
            told = (
                "no interval"
                if row["lo"] is None
                else f"{said:g} times is {'not excluded' if inside else 'excluded'}"
            )
            found.append(line._replace(verdict=told))
        return found

    return lines


def neurons(kept: Kept) -> list[Line]:
    """Does a neuron's degree go with how much its removal or doubling changes, beyond rotated directions?"""
    terms = {
        "degree": "per doubling of its degree",
        "degree_minus_rotated": "the same beyond rotated directions, size held",
    }
    slopes = [
        _line(f"{row['operation']}: log10 KL {terms[row['term']]}", row)
        for row in rows_in(kept, "neuron_slopes", locus="neuron", outcome="kl")
        if row["term"] in terms
    ]
    ways = {"degree": "the paper's own choice", "degree_held_out": "factor chosen on other prompts"}
    return slopes + [
        _percent(
            _line(
                f"largest {row['question']} of c, per bin of degree, {ways[row['path']]}; {tokens_of(row)}",
                _one_sided(row),
            )
        )
        for row in rows_in(kept, "degrees", step=0.0, locus="neuron")
    ]


def _one_sided(row: Row) -> Row:
    """A drop counts as the claim says: more of it with more degree. One neuron a bin, its features are no sample of their own."""
    turned = row | {"n_pairs": None, "n_targets": None, "n_neurons": row["n_rows"]}
    if row["question"] == "rise" or row["lo"] is None:
        return turned
    return turned | {"estimate": -row["estimate"], "lo": -row["hi"], "hi": -row["lo"]}


def structure(kept: Kept) -> list[Line]:
    """Pairs that pass in both models over what a permuted matching gives; INSIDE has the sources of another study."""
    return [
        Line(
            f"{_model(row['source_a'])} and {_model(row['source_b'])}", row["lift"], row["lift_lo"], row["lift_hi"], "times chance",
            f"{count(row['n_matched'])} matched features, {count(row['n_shared'])} shared pairs; by chance {count(row['expected'])}",
            verdict({"estimate": row["lift"], "lo": row["lift_lo"], "hi": row["lift_hi"]}, null=1.0),
        )
        for row in rows_in(kept, "transfer_shared")
        if row["study"] != INSIDE
    ]  # fmt: skip


def _model(name: str) -> str:
    """A reference, or the name of a target, as people say it."""
    for mark, said in _SAID.items():
        if mark in name:
            return said
    return name


def moved(arm: str, *, inside: bool = False) -> Callable[[Kept], list[Line]]:
    """Categories of a third model under strings of an arm, against matched strings; `inside`: of the models they come from."""

    def lines(kept: Kept) -> list[Line]:
        pairs = {
            r["study"]: f"{_model(r['source_a'])} and {_model(r['source_b'])}"
            for r in kept.get("transfer_shared", [])
        }
        return [
            _line(f"{pairs[r['study']]} → {_model(r['target'])}: {r['category']}", r, p="p_adj")
            for r in rows_in(kept, "transfer_effects", contrast="logodds", arm=arm)
            if (r["study"] == INSIDE) == inside
        ]

    return lines


def paper_way(kept: Kept) -> list[Line]:
    """Pairs minus the paper's random arm with every choice as in the paper; its own interval, every trial independent."""
    return [
        _percent(_line(f"{words.locus(row['locus'])}; {tokens_of(row)}", row))
        for row in rows_in(kept, "presets", step=0.0, question="difference")
    ]


def everywhere(kept: Kept) -> list[Line]:
    """Each dictionary alone, and what another one of the kind would show."""
    names = ("slope_interference", "geometry_effect")
    alone = contrasts("sites", "feature", *names, saes=True)(kept)
    rows = [
        r
        for r in rows_in(kept, "heterogeneity", study="sites")
        if r["contrast"] in names and r["mean"] is not None
    ]
    told = "another dictionary {}: {}; {}"
    of = {r["site"]: "of the kind" if r["site"] == POOLED else f"of block {place(r['site'])}" for r in rows}
    return alone + [
        _line(
            told.format(of[r["site"]], DECLARED[r["contrast"]], tokens_of(r)),
            r | {"n_pairs": None},
            value="mean",
        )
        for r in rows
    ]


def replicated(kept: Kept) -> list[Line]:
    """The same pairs in the dictionary of another seed."""
    return [
        _line(
            f"{row['measure']}: correlation of the same pairs' effects; {tokens_of(row)}",
            row,
            value="correlation",
        )
        for row in rows_in(kept, "replication")
        if row["sae"] == MIDDLE or row["other"] == MIDDLE
    ]


CLAIMS = (
    Claim(
        "Features that mean unrelated things share directions, more than chance would have it.", "§3, Fig. 9",
        shared_directions, "sites, presets",
        f"Pairs with interference of {FLOOR:g} and more; chance: all pairs, of like glosses too, of random directions with the dictionary's own "
        "covariance, so that the ratio is the least there is. Counts of a whole dictionary, so there is no interval.",
    ),
    Claim(
        "Steering along a feature moves another's tokens the more, the more the two interfere.", "§4.1, Fig. 3: .05 (Pythia), .003 (GPT-2), p < .001",
        contrasts("sites presets", "feature", "slope_interference", "slope_interference_alone"), "sites, presets",
        "Inside targets; `sites` is four dictionaries together, `presets` the one in the middle, with other targets. The first slope holds similarity, direct attribution, token overlap and frequency fixed.",
    ),
    Claim(
        "Interfering features do more than random ones.", "§4.1, Figs. 3 and 10",
        contrasts("sites presets", "feature", "pair_minus_random_feature", "geometry_effect", "pair_minus_cosine_matched", "sign_agreement"), "sites, presets",
        "The paper has one control. Here the effect is taken apart: what the angle does by itself, and what a feature does beyond it.",
    ),
    Claim(
        "... and do so with every choice as in the paper.",
        "the same",
        paper_way,
        "presets",
        "The best of all strengths for each prompt, cases that improved only, relative change of c; more below, "
        "[side by side](#presets-side-by-side).",
    ),
    Claim(
        "The same at every site, and in the dictionary of another seed.", "not asked in the paper; asked by its reviewers",
        everywhere, "sites",
        "Each dictionary alone, not adjusted for their number; then what another dictionary of the kind would show (random effects). "
        "The two seeds side by side: [below](#the-second-seed).",
    ),
    Claim("... and pair by pair in the other seed's dictionary.", "the same", replicated, "sites"),
    Claim(
        "Token gradients are about ten times as strong as feature directions.", "§4.2, Figs. 4 and 11", strengths("gradient", 10.0), "presets",
        "Sizes on the same pairs at one KL.",
    ),
    Claim("... and flat in interference.", "§4.2, Fig. 4", contrasts("presets", "gradient", "slope_interference", flat=True), "presets"),
    Claim(
        "Injected snippets have about a tenth of the strength of steering.", "§4.3, Figs. 5 and 15", strengths("prompt", 0.1), "presets",
        "Sizes on the same pairs at one KL.",
    ),
    Claim("... and follow interference.", "§4.3, Fig. 5", contrasts("presets", "prompt", "slope_interference"), "presets"),
    Claim(
        "Neurons that serve many meanings matter more when they are masked or amplified.", "§4.4, Figs. 6 and 17", neurons, "presets",
        "Coordinates of the residual stream, as in the paper.",
    ),
    Claim("Small models of different families share which features interfere.", "§5, Table 6", structure, _TRANSFER),
    Claim(
        "Strings of shared pairs move a third model towards the category.", "§5, Tables 1 and 5", moved("shared"), _TRANSFER,
        "Change of the log-odds of the category's words against pools of matched strings; adjusted over categories (max-T).",
    ),
    Claim(
        "So do the paper's own sets of high interference.", "§5, Tables 1 and 5: 29 of 40 cells above random", moved("high"),
        _TRANSFER, "The paper's definition of the set, our reference pools.",
    ),
    Claim(
        "The ceiling, for comparison: the category's own words.", "Tables 1 and 5, first column", moved("target"), _TRANSFER,
        "Against pools of other strings; a study with fewer than 39 of those has no interval.",
    ),
    Claim(
        "Strings of shared pairs move the two models they were taken from.", "not asked in the paper; a check from inside",
        moved("shared", inside=True), INSIDE, "What does nothing here can hardly be expected to do something in a third model.",
    ),
)  # fmt: skip
