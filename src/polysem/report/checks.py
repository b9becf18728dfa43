"""Second opinions in words: other models of the errors, single pairs, other SAEs, missing trials."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.report.panels import TOKENS
from polysem.report.text import count, interval, number, p_value, plural, visible
from polysem.stats.discovery import smallest_find

_MIXED = {
    "agrees": "It agrees: both resolve the same slope, or neither resolves one.",
    "disagrees": "It disagrees: one of the two resolves a slope and the other does not, or the signs differ. "
    "Trust neither far.",
    "none": "There is no second number.",
}
_QAP = {
    "related": "Yes, more than the targets' and the features' own sizes and chance would give.",
    "unrelated": "Not that this study could tell: relabelling targets and features gives slopes as large.",
    "none": "This could not be asked.",
}
_MISSING = {
    "random": "Nothing suggests that they differ.",
    "not_random": "They differ: trials are not missing at random, so pairs and controls, or weak and strong "
    "interference, are not compared on equal terms. No method of this report repairs that.",
    "none": "This could not be asked.",
}
Row = dict[str, str]


def check_rows(table: pa.Table, locus: str) -> list[Row]:
    """Question, answer and numbers of every check of a locus."""
    rows = []
    for r in table.filter(pc.equal(table["locus"], locus)).to_pylist():
        tokens = TOKENS[r["token_set"]]
        if r["check"] == "mixed_model":
            question = (
                f"Does a mixed model (targets and sources as random effects) see the same slope, {tokens}?"
            )
            rows.append(_row(question, _MIXED[r["verdict"]], r))
        elif r["check"] == "missing":
            question = f"Are trials that failed like those that did not, {tokens}?"
            answer = "No trial failed." if r["p"] is None else _MISSING[r["verdict"]]
            rows.append(_row(question, answer, r | {"estimate": None}))
    return rows


def qap_rows(table: pa.Table) -> list[Row]:
    """The permutation test of every SAE: about gradients, not about trials."""
    rows = []
    for r in table.filter(pc.equal(table["check"], "qap")).to_pylist():
        question = (
            f"{visible(r['sae'])}: is the gradient's effect related to the angle, {TOKENS[r['token_set']]}?"
        )
        rows.append(_row(question, _QAP[r["verdict"]], r))
    return rows


def _row(question: str, answer: str, r: dict[str, Any]) -> Row:
    said = []
    if r["estimate"] is not None:
        said.append(f"{number(r['estimate'], sign=True)} {r['unit']}")
    if r["lo"] is not None:
        said.append(interval(r["lo"], r["hi"]))
    if r["p"] is not None:
        said.append(p_value(r["p"], name="p"))
    said.append(f"{count(r['n'])} {'arms' if r['check'] == 'missing' else 'pairs'}")
    if r["note"]:
        said.append(visible(r["note"]))
    return {"question": question, "answer": answer, "numbers": "; ".join(said)}


def pair_sentences(table: pa.Table, locus: str, *, level: float) -> Iterator[str]:
    """How many single pairs stand out, per token set, and whether the study could have said so."""
    alpha = 1 - level
    for tokens, words in TOKENS.items():
        chosen = pc.and_(pc.equal(table["locus"], locus), pc.equal(table["token_set"], tokens))
        rows = table.filter(chosen).to_pylist()
        if not rows:
            continue
        bh, by = (sum(r[q] <= alpha for r in rows) for q in ("q_bh", "q_by"))
        null = min(r["n_null"] for r in rows)
        said = (
            f"{words[0].upper()}{words[1:]}: {plural(bh, 'pair')} of {count(len(rows))} "
            f"{'moves' if bh == 1 else 'move'} the target further than random features do, if one in "
            f"{round(1 / alpha)} of such finds may be false (Benjamini-Hochberg); {count(by)} by the stricter rule that "
            "holds for any dependence between pairs (Benjamini-Yekutieli)."
        )
        if bh == 0:
            need = smallest_find(len(rows), null, alpha=alpha)
            said += (
                f" With {plural(null, 'random feature')} to compare with, at least {plural(need, 'pair')} would have to "
                "exceed all of them before any could be named."
                + (
                    " That is more than there are: this study cannot name single pairs."
                    if need > len(rows)
                    else ""
                )
            )
        yield said


def replication_sentences(table: pa.Table) -> Iterator[str]:
    """What another SAE of the same site says of the same pairs."""
    named = set()
    for r in table.to_pylist():
        first, other = visible(r["sae"]), visible(r["other"])
        said = f"{first} and {other}, {TOKENS[r['token_set']]}: "
        if (first, other) not in named:
            named.add((first, other))
            said = (
                f"{first} and {other} read the same site. {100 * r['matched']:.0f} % of the features of the first have a "
                "counterpart in the second (cosine at least 0.7; on average the best cosine is "
                f"{number(r['best_cosine'], digits=2)}). {TOKENS[r['token_set']].capitalize()}: "
            )
        if r["correlation"] is None:
            yield f"{said}whether effects of pairs come back cannot be said: {visible(r['note'] or '')}."
            continue
        yield (
            f"{said}for {count(r['n_pairs'])} pairs of features that both have, the gradients' effects correlate at "
            f"{number(r['correlation'], digits=2)} ({number(r['lo'], digits=2)} to {number(r['hi'], digits=2)}), and the sign "
            f"is the same in {100 * r['sign_agreement']:.0f} % ({100 * r['sign_lo']:.0f} to {100 * r['sign_hi']:.0f} %; "
            "chance is 50 %). What does not come back belongs to one SAE, its directions or its tokens."
        )
