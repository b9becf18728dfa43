"""Which of the listed pairs are no interference of two concepts but the trace of how a dictionary divides things: one feature
twice, parts of one, a parent and its child. How many there are, which were not drawn, and what the slope is without them."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
from markupsafe import Markup

from polysem.hierarchy.known import mean_code
from polysem.report import words
from polysem.report.html import NOTE, Chapter, Column, Row, interval, probability, table
from polysem.report.source import Run, where
from polysem.report.text import count, number, plural, visible
from polysem.stats.rows import POOLED
from polysem.store.manifest import read_manifest
from polysem.vocabulary_findings import KINSHIPS

STAGE = "kinship"
TITLE = "Two concepts, or one divided?"
LEAD = (
    "A high cosine may be interference of two concepts, or the trace of how a dictionary divides one: a feature twice, in parts, or "
    "with a child that took over some of its tokens. Told apart by where features fire on the corpus and by what each is needed for."
)
NOT_ASKED = (
    "What the features of these pairs are to each other was not asked, so this study cannot say how many of them are one "
    "feature twice, parts of one, or a parent and its child; the section [relations] of a study asks it."
)
_SLOPES: tuple[Column, ...] = (
    ("SAE", lambda r: "all" if r["sae"] == POOLED else visible(r["sae"])),
    ("locus", lambda r: words.locus(r["locus"])),
    ("tokens", lambda r: words.asked(r["token_set"])),
    (
        "pairs",
        lambda r: {
            "all": "all of the plan",
            "not_excluded": "without those that the study excludes",
            "unrelated": "without any that have a relation",
        }[r["pairs"]],
    ),
    ("left out", lambda r: r["left_out"] or "none"),
    ("slope on interference", interval),
    ("p", probability),
    "unit",
    ("enter", lambda r: count(r["n_pairs"])),
    NOTE,
)


def kinship_section(run: Run) -> Markup:
    """The section; nothing where the study did not ask, or the stage is not finished."""
    asked = run.study.relations
    counted = run.table("related_pairs").to_pylist()
    if asked is None or not run.finished(STAGE):
        return Markup("")
    kinds = [name for name in KINSHIPS if any(r["relation"] == name for r in counted)]
    columns: list[Column] = [
        "SAE",
        "interference",
        "listed",
        *(KINSHIPS[name].label for name in kinds),
        "excluded",
        "left",
    ]
    body = table(
        columns, _by_bin(counted, kinds), caption="Listed pairs by what their features are to each other"
    )
    said = [_excluded(asked.exclude, asked.at), _left_out(run)]
    slopes = run.table("slopes_without").to_pylist()
    if slopes:
        body += table(
            _SLOPES,
            slopes,
            caption="The slope on interference of record, with and without pairs that have a relation",
        )
    rates = [
        r["rate"] for r in run.table("absorption", columns=("rate",)).to_pylist() if r["rate"] is not None
    ]
    if rates:
        said.append(
            f"Absorption: on {100 * sum(rates) / len(rates):.1f} % of a feature's tokens it is off and a child on (mean over "
            f"{plural(len(rates), 'feature')} whose probe is good enough). Where a dictionary reads by the transpose of what it "
            "writes, leaking looks like absorption."
        )  # fmt: skip
    said.append(_coded(run.table("meta_code")))
    told = Markup("").join(Markup("<p>{}</p>").format(s) for s in said if s)
    return Chapter(TITLE, LEAD, told + body).section(STAGE)


def kinship_line(run: Run) -> str:
    """One sentence for the findings: how many listed pairs have a relation, and the slope of record without them; "" where the
    study did not ask."""
    counted = run.table("related_pairs").to_pylist()
    n = sum(r["n_pairs"] for r in counted)
    if run.study.relations is None or not n:
        return ""
    related, out = (
        sum(r["n_pairs"] for r in counted if keep(r))
        for keep in (lambda r: r["relation"] != "unrelated", lambda r: r["excluded"])
    )
    said = (
        f"Of {plural(n, 'listed pair')} {count(related)} ({_share(related, n)}) have features that are something to each other by "
        f"where they fire, {count(out)} ({_share(out, n)}) in a way that this study excludes; {count(n - out)} are left."
    )  # fmt: skip
    return said + _slope(run, "in")


def _slope(run: Run, tokens: str) -> str:
    rows = where(run.table("slopes_without"), token_set=tokens).to_pylist()
    first = rows[0] if rows else None
    mine = {r["pairs"]: r for r in rows if first and (r["sae"], r["locus"]) == (first["sae"], first["locus"])}
    if "all" not in mine or not (without := mine["unrelated"])["n_left_out"]:
        return " None of the pairs that were steered has a relation." if mine else ""
    at = "" if without["sae"] == POOLED else f", {visible(without['sae'])}"
    return (
        f" The slope on interference ({words.asked(tokens)}{at}) is {interval(mine['all'])} with all pairs that were steered and "
        f"{interval(without)} without the {count(without['n_left_out'])} that have a relation."
    )


def _by_bin(counted: Sequence[Row], kinds: Sequence[str]) -> list[dict[str, object]]:
    found = []
    for sae, low, high in sorted({(r["sae"], r["low"], r["high"]) for r in counted}):
        mine = [r for r in counted if (r["sae"], r["low"]) == (sae, low)]
        n = Counter({r["relation"]: r["n_pairs"] for r in mine})
        out = sum(r["n_pairs"] for r in mine if r["excluded"])
        found.append(
            {"SAE": visible(sae), "interference": f"{number(low)} to {number(high)}", "listed": count(n.total())}
            | {KINSHIPS[name].label: count(n[name]) for name in kinds}
            | {"excluded": f"{count(out)} ({_share(out, n.total())})", "left": count(n.total() - out)}
        )  # fmt: skip
    return found


def _excluded(exclude: Sequence[str], at: str) -> str:
    if not exclude:
        return "The study excludes none of these."
    named = ", ".join(KINSHIPS[name].label for name in KINSHIPS if name in exclude)
    done = (
        "were not drawn for the plan"
        if at == "plan"
        else "were drawn all the same; slopes are told with and without them"
    )
    return f"Excluded by the study: {named}. Such pairs {done}."


def _left_out(run: Run) -> str:
    """Of the plan: how many candidates of the drawn targets were not drawn for it."""
    manifest = read_manifest(run.folder, "plan")
    left = {} if manifest is None else manifest.facts.get("left_out", {})
    if not left:
        return ""
    named = ", ".join(f"{KINSHIPS[name].label} {count(left[name])}" for name in KINSHIPS if name in left)
    return f"Left out of the plan: {plural(sum(left.values()), 'possible source')} of the targets that were drawn ({named})."


def _coded(meta: pa.Table) -> str:
    """How much of a row four others explain, beside chance."""
    mean = mean_code(meta)
    if not mean:
        return ""
    shares = {name: f"{100 * share:.1f} %" for name, share in mean.items()}
    return (
        f"A dictionary of the dictionary: four other decoder rows explain {shares['explained']} of a feature's squared length (mean over "
        f"{plural(meta.num_rows, 'feature')}). Rows of the dictionary turned at random explain {shares['turned']}, rows drawn with its mean "
        f"and covariance {shares['drawn']}; what is above both is features built of features."
    )


def _share(n: int, of: int) -> str:
    return f"{100 * n / of:.1f} %" if of else "–"
