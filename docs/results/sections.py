"""The page of what holds on real models, section by section; a function of the tables beside it alone."""

from collections import Counter
from collections.abc import Iterator, Sequence

from claims import (
    AGAINST,
    BENT,
    CLAIMS,
    DECLARED,
    HOLDS,
    MIDDLE,
    NONE,
    OPEN,
    OTHER_SEED,
    SHORT,
    STUDIES,
    Claim,
    Kept,
    Line,
    Row,
    place,
    rows_in,
    tokens_of,
    verdict,
)  # fmt: skip

from polysem.report import words
from polysem.report.text import count, interval, number

_SHOWN = ("pair", "isotropic", "rotated", "random_feature")
"""whose means stand beside each other: pairs, and the paper's random arm"""
UNLIKE = 0.3
"""`pairs.max_similarity` of the studies"""
_OWN_WAY = ("mean_effect", "paper_model_a", "paper_model_b")
"""contrasts that ask nothing of pairs against a control"""
_SIDE = {HOLDS: "above", AGAINST: "below"}
"""words for a contrast that need not be a claim of the paper"""
_STRATA = {"uniform": "any", "top": "those with the largest predicted effects"}
NOT_TESTED = (
    ("Steering that keeps HellaSwag within a point (§6)", "no question set comes with polysem; `cost.choices` of a transfer study takes one"),
    ("Relatedness by language-model judges (§3.5, App. M)", "`polysem judge` needs chat servers"),
    ("Gradient steering of the larger models (Table 4)", "`[[targets]] sae = …` of a transfer study does it on one; it was left out for its time"),
    ("Neurons of SmolLM2's MLP", "left out for its time; `plan.loci` takes `mlp_neuron`"),
    ("Models of 8 to 70 billion parameters (Tables 1, 4 and 5)", "not within reach of a CPU"),
)  # fmt: skip


def page(kept: Kept) -> str:
    """docs/results/README.md, from the tables alone."""
    parts = [
        _HEAD,
        _short(kept),
        _glance(kept),
        _RULES,
        *_pictures(kept),
        _words(kept),
        "## Claim by claim\n",
    ]
    for k, claim in enumerate(CLAIMS, 1):
        parts.append(_claim(k, claim, kept))
    parts += [_seeds(kept), _beside(kept), _atlas(kept), _limits(kept), _making(kept)]
    return "\n".join(part for part in parts if part)


_VERDICTS = {
    "Hold": "in every number that was asked",
    "Hold in some": "of their numbers, not in others",
    "Not resolved": "the data allow nothing as well as something",
    "Speak against the claim": "in at least one number",
    "Not run": "",
}


def _short(kept: Kept) -> str:
    """Which claims hold, and which do not, a line each."""
    found: dict[str, list[str]] = {}
    for k, claim in enumerate(CLAIMS, 1):
        told = {line.verdict for line in claim.lines(kept)}
        if told == {"no interval"}:
            continue  # a number for comparison, no claim
        word = "Speak against the claim"
        if not told:
            word = "Not run"
        elif told == {HOLDS}:
            word = "Hold"
        elif told & {HOLDS, SHORT} and not told & {AGAINST, BENT}:
            word = "Hold in some"
        elif told <= {OPEN}:
            word = "Not resolved"
        said = [line.verdict in (HOLDS, SHORT) for line in claim.lines(kept)]
        share = f" ({sum(said)} of {len(said)})" if word == "Hold in some" else ""
        found.setdefault(word, []).append(f"[{k}](#{k}){share}")
    lines = [
        f"- **{word}**{f' ({why})' if why else ''}: {', '.join(found[word])}"
        for word, why in _VERDICTS.items()
        if word in found
    ]
    return "Of the claims below, by number:\n\n" + "\n".join(lines) + "\n"


def _seeds(kept: Kept) -> str:
    """Contrast by contrast, what the dictionary of the other seed says of the same place."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows_in(kept, "effects", study="sites", locus="feature"):
        if row["sae"] in (MIDDLE, OTHER_SEED) and row["contrast"] not in _OWN_WAY:
            name = DECLARED.get(row["contrast"]) or words.contrast(row["contrast"]).label
            found.setdefault((name, tokens_of(row)), {})[row["sae"]] = row
    rows, changed, common = [], 0, 0
    for (name, read), both in found.items():
        if len(both) < 2:
            continue
        one, two = (both[sae] for sae in (MIDDLE, OTHER_SEED))
        null = 0.5 if one["contrast"] == "sign_agreement" else 0.0
        told = [_SIDE.get(said := verdict(row, null=null), said) for row in (one, two)]
        known = None not in (one["lo"], two["lo"])
        overlap = known and one["lo"] <= two["hi"] and two["lo"] <= one["hi"]
        changed, common = changed + (told[0] != told[1]), common + overlap
        cells = [_cell(Line("", r["estimate"], r["lo"], r["hi"], r["unit"], "", "")) for r in (one, two)]
        rows.append(
            (f"{name}; {read}", *cells, told[0] if told[0] == told[1] else f"{told[0]}, then {told[1]}")
        )
    if not rows:
        return ""
    head = ("question", "first seed (95 %)", "second seed (95 %)", "zero (of a share, 0.5)")
    return (
        f"## The second seed\n\nBlock 14 again, in the dictionary that another initialisation and order gave: of {len(rows)} verdicts it changes "
        f"**{changed}**; in {common} the two intervals overlap. Two verdicts that are both *{OPEN}* agree in little. Intervals are those "
        f"of one dictionary, not adjusted.\n\n{_table(head, rows)}\nMade by `{_command('sites')}`.\n"
    )


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
    ran = [name for name in claim.made_by.split(", ") if rows_in(kept, "stages", study=name)]
    made = ", ".join(f"`{_command(name)}`" for name in ran)
    return f"{head}\n\n{_table(('what', 'estimate (95 %)', 'of', 'verdict'), rows)}\nMade by {made}.\n"


def _command(study: str) -> str:
    return f"polysem {STUDIES[study]} studies/real/{study}.toml --out runs/real/{study}"


def _beside(kept: Kept) -> str:
    """The paper's way and the strict one, on the same pairs and prompts: interfering features, and what aims at nothing."""
    rows = []
    for row in rows_in(kept, "presets", step=0.0):
        if (
            row["tokens"] != "in"
            or row["question"] == "slope_a"
            or (row["question"] == "mean" and row["relation"] not in _SHOWN)
        ):
            continue
        same = {k: row[k] for k in ("study", "locus", "tokens", "question", "relation")}
        last = max(rows_in(kept, "presets", **same), key=lambda r: r["step"])
        asked = words.QUESTIONS[row["question"]]
        if row["question"] == "mean":
            asked = f"How far do {words.relation(row['relation']).label} move the target?"
        rows.append((words.locus(row["locus"]), tokens_of(row), asked, _preset(row), _preset(last)))
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
        (f"block {place(r['sae'])}, {_STRATA[r['stratum']]}", f"{number(r['r2'], digits=2)} ({interval(r['lo'], r['hi'], digits=2).replace('+', '')})",
         number(r["slope"], digits=2), f"{count(r['n'])} interventions", count(r["n_pairs"]))
        for r in rows_in(kept, "atlas_fit")
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
    largest = "sites" if rows_in(kept, "stages", study="sites") else "presets"
    rows = [
        (DECLARED[row["contrast"]], tokens_of(row), f"{number(row['smallest'], digits=2)} {row['unit']}")
        for row in rows_in(kept, "power", study=largest, locus="feature")
        if row["contrast"] in DECLARED and row["smallest"] is not None
    ]
    head = ("question", "read", "smallest effect")
    said = (
        f"What 4 of 5 studies such as `{largest}` would see at least:\n\n{_table(head, rows)}" if rows else ""
    )
    table = _table(("claim", "why not"), list(NOT_TESTED))
    return f"## What it cannot say\n\n{said}\nNot tested:\n\n{table}\n{_written(kept)}{_LIMITS}"


def _written(kept: Kept) -> str:
    """How many of the features that were steered have a line in plain words."""
    told = [
        f"in `{study}` "
        + ", ".join(f"{count(r['n_written'])} of {count(r['n_features'])} {r['role']}s" for r in rows)
        for study in STUDIES
        if (rows := rows_in(kept, "glossed", study=study))
    ]
    if not told:
        return ""
    return (
        '- "Unrelated" is a cosine below 0.3 between token glosses (the words a feature fires on) by MiniLM. Pairs are chosen by these, which every feature has,\n'
        f"  so that no choice depends on who wrote lines, or for which feature. A line in plain words have {'; '.join(told)}.\n"
    )


def _words(kept: Kept) -> str:
    """The closest pair of every dictionary, and whether pairs of unlike token glosses are unlike by the lines, too."""
    rows = kept.get("words", [])
    if not rows:
        return ""
    closest: dict[object, Row] = {}
    for row in sorted(rows, key=lambda r: -r["interference"]):
        closest.setdefault(row["sae"], row)
    unlike = [row for row in rows if row["line_similarity"] < UNLIKE]
    shown = [
        (f"block {place(r['sae'])}", r["target_line"], r["source_line"], *(number(r[n], digits=2) for n in ("interference", "similarity", "line_similarity")))
        for _, r in sorted(closest.items(), key=lambda item: str(item[0]))
    ]  # fmt: skip
    head = ("where", "target", "source", "interference", "similarity of token glosses", "of the lines")
    return (
        "## Pairs in plain words\n\nWhat was read and steered has lines in plain words, written from contexts alone and of no part in choosing the pairs "
        f"([how, and what they are worth](../glosses.md#written-for-the-zoos)). Of {count(len(rows))} pairs that have one on both sides {count(len(unlike))} are unlike "
        f"by the lines, too (cosine below {UNLIKE:g}). The closest pair of every dictionary; all are in `words.csv`:\n\n{_table(head, shown)}"
    )


def _making(kept: Kept) -> str:
    rows, total = [], 0.0
    for study in STUDIES:
        mine = rows_in(kept, "stages", study=study)
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
        f"Minutes of the clock, {total / 60:.0f} in all, one thread on a machine whose other core did other work; those of the CPU stand in `studies/real/README.md`. "
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
How to read a number: *interference* is the cosine of two features' directions; effects are changes of the log-odds of the target's tokens, in *nats* (+0.7 doubles the odds), under a
push that changes the next-token distribution by the same KL for every arm; *not resolved* means that zero is not excluded, for declared questions counted together and under every check, not that there is nothing. Terms: [glossary](../glossary.md).

Verdicts follow from intervals by rule. For questions declared beforehand they are the [claims](../effects.md) of the study (*holds* is *predicts*: significant after Holm,
robust, and predictive of what was left out); elsewhere *holds* means that the 95 % interval lies on the claim's side, in transfer that the adjusted p is below 0.05, too. But for transfer these are not adjusted for how many
they are: of twenty numbers with nothing behind them one lies outside by chance.
"""
_LIMITS = """\
- The studies are small: few targets, 6 prompts of 12 tokens, half of them to choose doses. Old books are the only text.
- Sizes were cut for time, each before any effect of its study was seen. `transfer-zoo` changed its text once, when an estimate of the requests
  showed that two categories had no shared strings, and before any answer.
- `presets` was run before with pairs chosen by written lines for a few features and token glosses for the rest. That was given up so that no line decides what is
  steered, not for an effect, but with that run's effects known. With the pairs of now some verdicts of claims 2, 7, 8 and 9 are others (`CHANGELOG.md` says which): with 8 targets they hang on which pairs are drawn.
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
