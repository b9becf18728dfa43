"""How often a finding is given each grade where there is nothing, and where there is something: the table in effects.md.

    python docs/grades.py           # writes the table between its marks; four minutes of one core
    python docs/grades.py --worlds 40   # fewer worlds, prints only

A world is the table of arms that a study of the demo's size would leave: three SAEs, fifteen targets each, pairs in five
bins of interference, pairs of negative interference, random features and directions at the pairs' cosines. Targets and sources have effects of their own and targets slopes of
their own, with the spreads that the demo's mixed model finds; the slope that all share is planted.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from polysem.seeds import rng_for
from polysem.stats.arms import PRIMARY, Arms
from polysem.stats.contrasts import differences, sign_agreement, slopes
from polysem.stats.effects import adjust, declared_rows
from polysem.stats.grades import SLOPE, graded
from polysem.stats.rows import POOLED, View
from polysem.stats.specification import specifications
from polysem.vocabulary import OUTCOMES
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES

PAGE = Path(__file__).with_name("effects.md")
BEGIN, END = "<!-- grades: python docs/grades.py -->", "<!-- end of grades -->"
SAES, TARGETS, PER_BIN, RANDOM, PROMPTS = 3, 15, 2, 2, 8
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.55)
SHARE = (1.0, 1.0, 1.0, 0.6, 0.12)
"""of the places in a bin that find a partner, from the lowest bin, as in the demo"""
SPREAD = {"target": 0.15, "source": 0.17, "pair": 0.3, "prompt": 0.55, "slope": 0.5}
"""SD in nats, of slopes in nats per cosine: targets, sources and pairs as the demo's mixed model has them (0.36 for pairs
together with the mean of eight prompts)"""
PLANTED = (0.5, 1.0, 2.0)
NULLS, WORLDS, DRAWS = 400, 100, 199


def world(slope: float, *, seed: int) -> View:
    """The arms of one study at its headline dose, tokens that activate the target, with this slope planted."""
    rng = rng_for(seed, "grades")
    rows = []
    for sae in range(SAES):
        pool = SPREAD["source"] * rng.standard_normal(400)
        for target in range(TARGETS):
            level = SPREAD["target"] * rng.standard_normal()
            own = slope + SPREAD["slope"] * rng.standard_normal()
            sources = iter(100 + rng.permutation(400))
            arms = [
                ("pair", b, rng.uniform(EDGES[b], EDGES[b + 1]))
                for b in range(len(EDGES) - 1)
                for _ in range(PER_BIN)
                if rng.random() < SHARE[b]
            ]
            arms += [("negative_pair", b, -rng.uniform(EDGES[b], EDGES[b + 1])) for b in (1, 2)]
            arms += [("random_feature", -1, rng.uniform(-0.05, 0.05)) for _ in range(RANDOM)]
            for relation, b, x in arms:
                source = int(next(sources))
                y = level + pool[source - 100] + own * x + SPREAD["pair"] * rng.standard_normal()
                rows.append(_row(sae, target, source, relation, b, x, y, rng))
                if relation == "pair":  # a random direction at the same angle: it does what the angle does
                    y = level + own * x + SPREAD["pair"] * rng.standard_normal()
                    rows.append(_row(sae, target, -1, "cosine_matched", b, x, y, rng))
                    rows[-1] |= {"pair_target": target, "pair_source": source, "draw": len(rows)}
    cells = np.arange(len(rows)).repeat(PROMPTS)
    effect = np.array([row[PRIMARY] for row in rows]).repeat(PROMPTS)
    effect = effect + SPREAD["prompt"] * rng.standard_normal(len(cells))
    measured = effect.reshape(-1, PROMPTS).mean(axis=1)
    table = pa.Table.from_pylist([row | {PRIMARY: y} for row, y in zip(rows, measured.tolist(), strict=True)])
    arms_ = Arms(table, cells, np.tile(np.arange(PROMPTS), len(rows)), {PRIMARY: effect})
    return View.of(arms_, locus="feature", dose=0.1, level=0.95, model="", caveat="", margin=0.05)


def _row(
    sae: int, target: int, source: int, relation: str, b: int, x: float, y: float, rng: np.random.Generator
) -> dict[str, object]:
    key = {"sae": f"sae {sae}", "locus": "feature", "relation": relation, "target": target, "source": source}
    known = {
        "pair_target": -1,
        "pair_source": -1,
        "draw": 0,
        "token_set": "in",
        "dose": 0.1,
        "interference_bin": b,
        "interference": x,
    }
    measured = dict.fromkeys(OUTCOMES, y) | {f"{PRIMARY}_se": 0.1, "kl": 0.1}
    counts = {"n_planned": 2 * PROMPTS, "n_ok": 2 * PROMPTS, "n_prompts": PROMPTS}
    return {**key, **known, "similarity": rng.uniform(0.0, 0.3), "layer_type": "resid", **measured, **counts}


def study(view: View, *, seed: int) -> tuple[list[dict], list[dict]]:
    """FINDINGS and GRADED of a world."""
    rows = []
    for sae in (POOLED, *sorted(set(view.columns["sae"]))):
        at = {"sae": sae, "tokens": "in", "outcome": PRIMARY}
        rows += [*slopes(view, **at), *differences(view, **at), sign_agreement(view, **at)]
    rows = adjust(rows, locus=view.locus)
    curve = specifications(view, seed=seed, draws=DRAWS)
    asked = declared_rows(rows)
    return graded(view, rows, asked, declared=True, specification=curve, explained=[], seed=seed)


def rates(slope: float, worlds: int) -> dict[str, float]:
    """Share of worlds in which the slope on interference gets each grade, line and claim."""
    seen: Counter[str] = Counter()
    for seed in range(worlds):
        findings, lines = study(world(slope, seed=seed), seed=seed)
        told = next(f for f in findings if f["contrast"] == SLOPE)
        seen[f"claim {told['claim']}"] += 1
        seen.update(f"grade {g}" for g in GRADES if told[g] == "agrees")
        seen.update(f"line {r['line']}" for r in lines if r["contrast"] == SLOPE and r["verdict"] == "agrees")
    return {name: n / worlds for name, n in seen.items()}


def table(nulls: int, worlds: int) -> str:
    """Markdown: grades, lines and claims down, worlds across."""
    columns = [("nothing", rates(0.0, nulls), nulls)]
    columns += [(f"{slope:g} nats per cosine", rates(slope, worlds), worlds) for slope in PLANTED]
    names = [(f"grade {g}", f"**{word.label}**") for g, word in GRADES.items()]
    names += [(f"line {g}", f"{word.grade}: {word.label}") for g, word in GRADE_LINES.items()]
    names += [(f"claim {g}", f"claim: *{word.label}*") for g, word in CLAIMS.items()]
    shown = [(key, label) for key, label in names if any(key in rate for _, rate, _ in columns)]
    lines = [
        "| | " + " | ".join(f"{name} ({n} worlds)" for name, _, n in columns) + " |",
        "|---|" + "---|" * len(columns),
        *(
            f"| {label} | " + " | ".join(f"{rate.get(key, 0.0):.3f}" for _, rate, _ in columns) + " |"
            for key, label in shown
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, help="worlds of each kind; prints the table, writes nothing")
    asked = parser.parse_args().worlds
    made = table(asked or NULLS, asked or WORLDS)
    if asked:
        print(made)
        return
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
