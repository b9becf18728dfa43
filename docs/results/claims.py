"""The page of what holds on real models: the paper's claims, the numbers that answer each, and the rule that makes a verdict of
an interval. A function of the tables beside it alone."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from polysem.report import words
from polysem.report.text import count, interval, number
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
_DECLARED = {
    "slope_interference": "slope on interference",
    "geometry_effect": "angle alone: random directions at the pairs' cosines − random features",
    "pair_minus_cosine_matched": "beyond the angle: pairs − random directions at their cosines",
    "sign_agreement": "share of pairs that move the way their sign says (chance: 0.5)",
}


_TRANSFER = ", ".join(name for name, kind in STUDIES.items() if kind == "transfer")


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
    after: Callable[[Kept], str] = lambda kept: ""


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


def _rows(kept: Kept, table: str, **parts: object) -> list[Row]:
    return [r for r in kept.get(table, []) if all(r[k] == v for k, v in parts.items())]


def _line(what: str, row: Row, *, null: float = 0.0, p: str | None = None, value: str = "estimate") -> Line:
    alone = row.get("contrast") in (None, "sign_agreement", "slope_interference", "slope_interference_alone")
    nouns = {"n_pairs": "pairs" if alone and "question" not in row else "arms", "n_targets": "targets"}
    nouns |= {"n_reference": "reference pools", "n_neurons": "neurons"}
    counted = [f"{count(row[name])} {noun}" for name, noun in nouns.items() if row.get(name)]
    known = {"estimate": row[value], "lo": row["lo"], "hi": row["hi"]}
    unit = row.get("unit") or ("times" if value == "ratio" else "")
    return Line(what, *known.values(), unit, ", ".join(counted), verdict(row | known, null=null, p=p))


def _tokens(row: Row) -> str:
    return f"{words.tokens(row['tokens'])}{'' if row.get('outcome') in (None, 'logodds') else ', ' + words.outcome(row['outcome'])}"


def _percent(line: Line) -> Line:
    """A relative change in per cent."""
    ends = (None if v is None else 100 * v for v in (line.estimate, line.lo, line.hi))
    return Line(line.what, *ends, "%", line.n, line.verdict)


def _sae(name: str) -> str:
    """A label as a place."""
    if name == POOLED:
        return "together"
    seed = ", second seed" if name == OTHER_SEED else ""
    return (
        name.removesuffix("-2" if seed else "").removeprefix("blocks.").replace(".hook_resid_post", "") + seed
    )


def shared_directions(kept: Kept) -> list[Line]:
    """Pairs above FLOOR beside what directions of the same covariance give; a ratio without an interval."""
    found = []
    for row in _rows(kept, "spectrum", threshold=FLOOR):
        ratio = row["n_pairs"] / row["n_covariance"]
        said = f"{count(row['n_pairs'])} pairs, {count(row['n_unrelated'])} of them with unlike glosses; by chance {count(row['n_covariance'])}"
        found.append(
            Line(
                f"{row['study']}: block {_sae(row['sae'])}",
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
            for row in _rows(kept, "effects", study=study, locus=locus, contrast=name):
                if (row["sae"] == POOLED) == saes or (row["outcome"] != "logodds" and not row["declared"]):
                    continue
                told = f"{study}: " if several else f"block {_sae(row['sae'])}: " if saes else ""
                what = f"{told}{_DECLARED.get(name) or words.contrast(name).label}; {_tokens(row)}"
                line = _line(what, row, null=0.5 if name == "sign_agreement" else 0.0)
                found.append(line._replace(verdict=_flat(row)) if flat else line)
        return found

    return lines


def _flat(row: Row) -> str:
    """The verdict where the claim is that there is nothing: equivalence holds it up, an interval without zero knocks it down."""
    if row["p_equivalent"] is not None and row["p_equivalent"] < LEVEL:
        return HOLDS
    return OPEN if row["lo"] is None or row["lo"] <= 0 <= row["hi"] else AGAINST


def strengths(locus: str, said: float) -> Callable[[Kept], list[Line]]:
    """Size at the locus over that of feature directions, at one KL; `said` is the paper's number."""

    def lines(kept: Kept) -> list[Line]:
        found = []
        for row in _rows(kept, "budgets", locus=locus):
            inside = row["lo"] is not None and row["lo"] <= said <= row["hi"]
            line = _line(
                f"{words.locus(locus)} over {words.locus(row['reference']).lower()}; {_tokens(row)}",
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
    return [
        _line(f"{row['operation']}: log10 KL {terms[row['term']]}", row)
        for row in _rows(kept, "neuron_slopes", locus="neuron", outcome="kl")
        if row["term"] in terms
    ]


def structure(kept: Kept) -> list[Line]:
    """Pairs that pass in both models over what a permuted matching gives."""
    return [
        Line(
            f"{_model(row['source_a'])} and {_model(row['source_b'])}", row["lift"], row["lift_lo"], row["lift_hi"], "times chance",
            f"{count(row['n_matched'])} matched features, {count(row['n_shared'])} shared pairs; by chance {count(row['expected'])}",
            verdict({"estimate": row["lift"], "lo": row["lift_lo"], "hi": row["lift_hi"]}, null=1.0),
        )
        for row in _rows(kept, "transfer_shared")
    ]  # fmt: skip


def _model(name: str) -> str:
    """A reference, or the name of a target, as people say it."""
    for mark, said in _SAID.items():
        if mark in name:
            return said
    return name


def moved(arm: str) -> Callable[[Kept], list[Line]]:
    """Categories of a third model under strings of an arm, against matched strings."""

    def lines(kept: Kept) -> list[Line]:
        pairs = {
            r["study"]: f"{_model(r['source_a'])} and {_model(r['source_b'])}"
            for r in kept.get("transfer_shared", [])
        }
        return [
            _line(f"{pairs[r['study']]} → {_model(r['target'])}: {r['category']}", r, p="p_adj")
            for r in _rows(kept, "transfer_effects", contrast="logodds", arm=arm)
        ]

    return lines


def seeds(kept: Kept) -> str:
    """What the dictionary of the other seed changes, contrast by contrast."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in _rows(kept, "effects", study="sites", locus="feature"):
        if row["sae"] in (MIDDLE, OTHER_SEED) and row["contrast"] not in (
            "mean_effect",
            "paper_model_a",
            "paper_model_b",
        ):
            told = verdict(row, null=0.5 if row["contrast"] == "sign_agreement" else 0.0)
            name = _DECLARED.get(row["contrast"]) or words.contrast(row["contrast"]).label
            found.setdefault((name, _tokens(row)), {})[row["sae"]] = told
    both = {what: told for what, told in found.items() if len(told) == 2}
    if not both:
        return ""
    changed = [
        f"{name} ({tokens}: {told[MIDDLE]}, then {told[OTHER_SEED]})"
        for (name, tokens), told in both.items()
        if told[MIDDLE] != told[OTHER_SEED]
    ]
    said = f"changes the verdict of {len(changed)}: {'; '.join(changed)}" if changed else "changes none"
    return f"\nOf {len(both)} contrasts at block 14 the second seed's dictionary {said}.\n"


def paper_way(kept: Kept) -> list[Line]:
    """Pairs minus the paper's random arm with every choice as in the paper; its own interval, every trial independent."""
    return [
        _percent(_line(f"{words.locus(row['locus'])}; {_tokens(row)}", row))
        for row in _rows(kept, "presets", step=0.0, question="difference")
    ]


def everywhere(kept: Kept) -> list[Line]:
    """Each dictionary alone, and what another one of the kind would show."""
    names = ("slope_interference", "geometry_effect")
    alone = contrasts("sites", "feature", *names, saes=True)(kept)
    rows = [
        r
        for r in _rows(kept, "heterogeneity", study="sites")
        if r["contrast"] in names and r["mean"] is not None
    ]
    told = "another dictionary of the kind: {}; {}"
    return alone + [
        _line(told.format(_DECLARED[r["contrast"]], _tokens(r)), r | {"n_pairs": None}, value="mean")
        for r in rows
    ]


def replicated(kept: Kept) -> list[Line]:
    """The same pairs in the dictionary of another seed."""
    return [
        _line(
            f"{row['measure']}: correlation of the same pairs' effects; {_tokens(row)}",
            row,
            value="correlation",
        )
        for row in _rows(kept, "replication")
        if row["sae"] == MIDDLE or row["other"] == MIDDLE
    ]


CLAIMS = (
    Claim(
        "Features that mean unrelated things share directions, more than chance would have it.", "§3, Fig. 9",
        shared_directions, "sites, presets",
        f"Pairs with interference of {FLOOR:g} and more; chance: random directions with the dictionary's own covariance. Counts of a whole "
        "dictionary, so there is no interval.",
    ),
    Claim(
        "Steering along a feature moves another's tokens the more, the more the two interfere.", "§4.1, Fig. 3: .05 (Pythia), .003 (GPT-2), p < .001",
        contrasts("sites presets", "feature", "slope_interference", "slope_interference_alone"), "sites, presets",
        "Inside targets; `sites` is four dictionaries together, `presets` the one in the middle with glosses in plain words. The first slope holds similarity, direct attribution, token overlap and frequency fixed.",
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
        "Each dictionary alone, not adjusted for their number; then what another dictionary of the kind would show (random effects).",
        seeds,
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
)  # fmt: skip
_SHOWN = ("pair", "isotropic", "rotated", "random_feature")
"""whose means stand beside each other: pairs, and the paper's random arm"""
_STRATA = {"uniform": "any", "top": "those with the largest predicted effects"}
_SAID = {
    "smollm2": "SmolLM2",
    "gemma3": "Gemma 3",
    "gpt2": "the zoo's GPT-2",
    "neox": "the zoo's NeoX",
    "llama": "the zoo's Llama",
}
NOT_TESTED = (
    ("Steering that keeps HellaSwag within a point (§6)", "no question set comes with polysem; `cost.choices` of a transfer study takes one"),
    ("Relatedness by language-model judges (§3.5, App. M)", "`polysem judge` needs chat servers"),
    ("Gradient steering of the larger models (Table 4)", "`[[targets]] sae = …` of a transfer study does it on one; it was left out for its time"),
    ("Neurons of SmolLM2's MLP", "left out for its time; `plan.loci` takes `mlp_neuron`"),
    ("Models of 8 to 70 billion parameters (Tables 1, 4 and 5)", "not within reach of a CPU"),
)  # fmt: skip


def page(kept: Kept) -> str:
    """docs/results/README.md, from the tables alone."""
    parts = [_HEAD, *_pictures(kept), _RULES, _glance(kept), "\n## Claim by claim\n"]
    for k, claim in enumerate(CLAIMS, 1):
        parts.append(_claim(k, claim, kept))
    parts += [_beside(kept), _atlas(kept), _limits(kept), _making(kept)]
    return "\n".join(parts)


def _pictures(kept: Kept) -> Iterator[str]:
    """The largest study's effects, and the map of all pairs, each with what is said below it."""
    drawn = {row["name"]: row for row in kept.get("pictures", [])}
    for name in ("sites" if "sites" in drawn else "presets", "map"):
        if name in drawn:
            yield f"![{drawn[name]['title']}]({name}.svg)\n\n*{drawn[name]['title']}.* {drawn[name]['caption']}\n"


def _summary(lines: list[Line]) -> str:
    """How many lines of a claim say what."""
    counts = Counter(line.verdict for line in lines)
    if len(counts) == 1:
        return next(iter(counts)) + (f" ({len(lines)} of {len(lines)})" if len(lines) > 1 else "")
    return "; ".join(f"{name} ({n} of {len(lines)})" for name, n in counts.most_common()) or NONE


def _glance(kept: Kept) -> str:
    rows = []
    for k, claim in enumerate(CLAIMS, 1):
        lines = claim.lines(kept)
        rows.append((f"[{k}](#{k})", claim.said, _summary(lines), _cell(lines[0]) if lines else "–"))
    return _table(
        ("", "claim of arXiv 2505.11611", "on real models", "first number, with its 95 % interval"), rows
    )


def _cell(line: Line) -> str:
    """An estimate with its interval and unit; what cannot be negative has no sign."""
    sign = not line.unit.startswith(("times", "share")) and line.lo is not None
    between = "" if line.lo is None else f" ({interval(line.lo, line.hi, digits=2)})"
    told = f"{number(line.estimate, digits=2, sign=sign)}{between if sign else between.replace('+', '')} {line.unit}"
    return told.strip()


def _claim(k: int, claim: Claim, kept: Kept) -> str:
    lines = claim.lines(kept)
    head = f'<a id="{k}"></a>\n### {k}. {claim.said}\n\n*{claim.where}.* {claim.note}'.rstrip()
    if not lines:
        return f"{head}\n\n**{NONE[0].upper()}{NONE[1:]}.**\n"
    rows = [(line.what, _cell(line), line.n, line.verdict) for line in lines]
    ran = [name for name in claim.made_by.split(", ") if _rows(kept, "stages", study=name)]
    made = ", ".join(f"`{_command(name)}`" for name in ran)
    return f"{head}\n\n{_table(('what', 'estimate (95 %)', 'of', 'verdict'), rows)}{claim.after(kept)}\nMade by {made}.\n"


def _command(study: str) -> str:
    return f"polysem {STUDIES[study]} studies/real/{study}.toml --out runs/real/{study}"


def _beside(kept: Kept) -> str:
    """The paper's way and the strict one, on the same pairs and prompts: interfering features, and what aims at nothing."""
    rows = []
    for row in _rows(kept, "presets", step=0.0):
        if (
            row["tokens"] != "in"
            or row["question"] == "slope_a"
            or (row["question"] == "mean" and row["relation"] not in _SHOWN)
        ):
            continue
        same = {k: row[k] for k in ("study", "locus", "tokens", "question", "relation")}
        last = max(_rows(kept, "presets", **same), key=lambda r: r["step"])
        asked = words.QUESTIONS[row["question"]]
        if row["question"] == "mean":
            asked = f"How far do {words.relation(row['relation']).label} move the target?"
        rows.append((words.locus(row["locus"]), _tokens(row), asked, _preset(row), _preset(last)))
    if not rows:
        return ""
    head = ("steered", "read", "question", "the paper's choices", "the strict ones")
    return (
        "## Presets side by side\n\nThe same pairs and prompts, every choice as in the paper, and every choice as it can be defended "
        "([what differs](../presets.md)). Intervals of the paper's way are the paper's: every trial counts as independent. "
        "Read its rows of random directions first: what chooses the best of many strengths finds as large an effect where nothing is aimed at. "
        "Of the tokens the target writes the table `presets.csv` has the paper's end alone: the strict question is asked beyond the direct path, above.\n\n"
        f"<details><summary>The table: {len(rows)} rows</summary>\n\n{_table(head, rows)}\n</details>\n\nMade by `{_command('presets')}`; each step between the two in `presets.csv`.\n"
    )


def _atlas(kept: Kept) -> str:
    """How far the linear response of all pairs tells what steering does."""
    rows = [
        (f"block {_sae(r['sae'])}, {_STRATA[r['stratum']]}", f"{number(r['r2'], digits=2)} ({interval(r['lo'], r['hi'], digits=2)})",
         number(r["slope"], digits=2), f"{count(r['n'])} interventions", count(r["n_pairs"]))
        for r in _rows(kept, "atlas_fit")
    ]  # fmt: skip
    if not rows:
        return ""
    head = (
        "pairs",
        "R² of measured effects (95 %)",
        "measured on predicted",
        "steered",
        "ordered pairs in the atlas",
    )
    return (
        "## Atlas\n\nThe effect of every feature on every other, to first order, from one backward pass a prompt; how much of real steering "
        f"(0.01 nats) that explains:\n\n{_table(head, rows)}\n"
        "Made by `polysem atlas studies/real/presets.toml --out runs/real/presets --prompts 4 --sample 20`.\n"
    )


def _preset(row: Row) -> str:
    if row["estimate"] is None:
        return row["note"] or "–"
    scale = 100.0 if row["unit"].startswith("relative change") else 1.0
    unit = row["unit"].replace("relative change", "%")
    ends = (None, None) if row["lo"] is None else (scale * row["lo"], scale * row["hi"])
    return _cell(Line("", scale * row["estimate"], *ends, unit, "", ""))


def _limits(kept: Kept) -> str:
    largest = "sites" if _rows(kept, "stages", study="sites") else "presets"
    smallest = [
        f"{number(row['smallest'], digits=2)} {row['unit']} ({_DECLARED.get(row['contrast'], row['contrast'])}; {_tokens(row)})"
        for row in _rows(kept, "power", study=largest, locus="feature")
        if row["contrast"] in _DECLARED and row["smallest"] is not None
    ]
    said = (
        f"What 4 of 5 studies such as `{largest}` would see at least: {'; '.join(smallest)}.\n"
        if smallest
        else ""
    )
    return f"## What it cannot say\n\n{said}\nNot tested:\n\n{_table(('claim', 'why not'), list(NOT_TESTED))}\n{_LIMITS}"


def _making(kept: Kept) -> str:
    rows, total = [], 0.0
    for study in STUDIES:
        mine = _rows(kept, "stages", study=study)
        spent = sum(r["seconds"] for r in mine)
        total += spent
        told = ", ".join(f"{r['stage']} {r['seconds'] / 60:.1f}" for r in mine) or NONE
        rows.append(
            (
                f"`studies/real/{study}.toml`",
                f"`{_command(study)}`",
                f"{spent / 60:.0f}" if mine else "–",
                told,
            )
        )
    return (
        f"## Making it again\n\n{_MAKING}\n{_table(('study', 'command', 'minutes', 'of them'), rows)}\n"
        f"Minutes of the clock, {total / 60:.0f} in all: one process of one thread, on two cores that did other work as well. "
        "Tables: the `.csv` files beside this page, columns as in the [reference](../reference/tables.md).\n"
    )


_HEAD = """\
<!-- made by docs/results/make.py; not written by hand -->
# What holds on real models

The claims of "Signal in the Noise" (arXiv 2505.11611), asked of two language models that people use: **SmolLM2-135M-Instruct** and, as target and
source of transfer, **Gemma-3-270M**; both from 4-bit files that any machine with a Python index has, with dictionaries trained for this purpose
([how](../real-models.md)). No setting was chosen by an effect: they stand in `studies/real`, whatever came out is below, and a null is a result.
"""
_RULES = """\
Verdicts follow from intervals by rule. For questions declared beforehand they are the [claims](../effects.md) of the study (*holds* is *predicts*: significant after Holm,
robust, and predictive of what was left out); elsewhere *holds* means that the 95 % interval lies on the claim's side, in transfer that the adjusted p is below 0.05, too.
"""
_LIMITS = """\
- Glosses: in `presets` 150 features of the middle dictionary have a line in plain words, all others, and all of `sites`, token glosses (the words a feature fires on).
  "Unrelated" is a cosine below 0.3 between their embeddings by MiniLM.
- The studies are small: few targets, 6 prompts of 12 tokens, half of them to choose doses. Old books are the only text.
- Sizes were cut for time, each before any effect of its study was seen. `transfer-zoo` changed its text once, when an estimate of the requests
  showed that two categories had no shared strings, and before any answer.
- Two seeds of one dictionary differ in initialisation and order, not in text; sites are of one model.
- Weights are 4-bit roundings of the published ones, in float32 arithmetic.
"""
_MAKING = """\
`make real` runs what is missing, one study after the other, and goes on where it was stopped; then
`python docs/results/make.py runs/real` writes the tables and this page. A test holds the page to its tables.
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )
