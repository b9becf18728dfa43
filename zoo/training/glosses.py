"""Written glosses of the zoos' dictionaries: sheets to read, blind sheets to judge, and the files that are shipped.

    python glosses.py read   --run RUN --label SITE --sae zoo:gpt2/SITE --features LIST --work WORK
    python glosses.py blind  --work WORK            # after the lines stand in WORK/NAME.tsv: number, tab, gloss
    python glosses.py marked --work WORK
    python glosses.py ship   --work WORK --out FOLDER   # after the answers stand in WORK/{blind,marked}.answers

RUN is a folder of `polysem run` or `polysem features` on some text, with the twelve contexts a feature that a study keeps by default.
A gloss is written from contexts of even rank and scored on those of odd rank. A blind sheet mixes all dictionaries in an
order drawn once and hides whose gloss it is: six texts a gloss, each by a coin either of the feature (odd rank) or of one of
the 20 features of nearest density (odd rank, from a place where this one has no context); an answer is one digit a text. On the
sheet `marked` both kinds show the tokens that made them. `auroc` needs no judge: how often the gloss lies nearer
to a text of the feature than to one of another, by the cosine of sentence vectors.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from polysem.glosses import embed_texts
from polysem.store.run import RunFolder
from polysem.transfer.explainer import ExplainedContext

SHOWN = 5
NEAR = 20
TEXTS = 6
SEED = 20261128
Row = dict[str, Any]


def read(run: RunFolder, label: str, sae: str, features: list[int], work: Path) -> None:
    """WORK/NAME.json: the contexts of every chosen feature and of its neighbours in density; WORK/NAME.txt: what is read.

    Args:
        run: its tables `features` and `contexts` are read.
        label: of the dictionary in them.
        sae: the reference under which its lines are shipped.
        features: numbers.
        work: folder.
    """
    rows, kept_contexts = (
        run.table(name, where=pc.field("sae") == label) for name in ("features", "contexts")
    )
    contexts: dict[int, list[Row]] = {}
    for row in kept_contexts.to_pylist():
        kept = {name: row[name] for name in ("rank", "tokens", "values", "source")}
        contexts.setdefault(row["feature"], []).append(kept)
    density = {r["feature"]: r["density"] for r in rows.to_pylist() if r["feature"] in contexts}
    rng, found, sheet = np.random.default_rng(SEED), [], []
    for n, feature in enumerate(features):
        own = contexts[feature]
        places = {row["source"] for row in own}
        near = sorted(
            (f for f in density if f != feature and len(contexts[f]) > 5),
            key=lambda f: abs(np.log(density[f] / density[feature])),
        )[:NEAR]
        others = [r for f in near for r in contexts[f] if r["rank"] % 2 and r["source"] not in places]
        silent = [others[k] for k in rng.permutation(len(others))[:TEXTS].tolist()]
        even, odd = ([r for r in own if r["rank"] % 2 == parity] for parity in (0, 1))
        found.append(
            {"sae": sae, "feature": feature, "even": even[:SHOWN], "odd": odd[:TEXTS], "silent": silent}
        )
        sheet += [f"#{n}", *(f"  {one_line(r, marks=True)}" for r in even[:SHOWN])]
    name = sae.replace("/", "_").replace(":", "_")
    (work / f"{name}.json").write_text(json.dumps(found))
    (work / f"{name}.txt").write_text("\n".join(sheet) + "\n")


def one_line(row: Row, *, marks: bool) -> str:
    context = ExplainedContext(tuple(row["tokens"]), tuple(row["values"]))
    return " ".join((context.marked() if marks else context.text).replace("\n", " / ").split())


def glossed(work: Path) -> list[Row]:
    """Every chosen feature with its line."""
    rows = []
    for lines in sorted(work.glob("*.tsv")):
        texts = dict(line.split("\t") for line in lines.read_text().splitlines())
        found = json.loads(lines.with_suffix(".json").read_text())
        rows += [row | {"gloss": texts[str(n)]} for n, row in enumerate(found) if str(n) in texts]
    return rows


def blind(work: Path, name: str) -> None:
    """WORK/{name}.txt, and the truth beside it."""
    rng = np.random.default_rng([SEED, len(name)])
    rows = [row for row in glossed(work) if "unclear" not in row["gloss"]]
    sheet, truth = [], []
    for n, k in enumerate(rng.permutation(len(rows)).tolist()):
        row = rows[k]
        pools = [list(rng.permutation(row[kind])) for kind in ("silent", "odd")]
        coins = []
        sheet.append(f"#{n} {row['gloss'].removeprefix('mixed: ')}")
        for coin in rng.integers(0, 2, TEXTS).tolist():
            if pools[coin]:  # a rare feature may have fewer texts than the coins ask for
                coins.append(coin)
                sheet.append(f" {one_line(pools[coin].pop(), marks=name == 'marked')}")
        truth.append([row["sae"], row["feature"], "".join(map(str, coins))])
    (work / f"{name}.txt").write_text("\n".join(sheet) + "\n")
    (work / f"{name}.truth.json").write_text(json.dumps(truth))


def answered(work: Path, name: str) -> dict[tuple[str, int], tuple[float, int]]:
    """Share of texts put right, and of how many."""
    said = dict(line.split() for line in (work / f"{name}.answers").read_text().splitlines())
    found = {}
    for n, (sae, feature, truth) in enumerate(json.loads((work / f"{name}.truth.json").read_text())):
        right = [a == b for a, b in zip(said[str(n)], truth, strict=True)]
        found[sae, feature] = sum(right) / len(right), len(right)
    return found


def auroc(rows: list[Row], work: Path) -> list[float | None]:
    """Of every gloss, against texts of the feature and of others."""
    wanted = [
        (row["gloss"].removeprefix("mixed: "), *([one_line(r, marks=False) for r in row[kind]] for kind in ("odd", "silent")))
        for row in rows
    ]  # fmt: skip
    texts = list(dict.fromkeys(t for gloss, odd, silent in wanted for t in (gloss, *odd, *silent)))
    vectors = dict(zip(texts, embed_texts(texts, "minilm", cache=work / "embeddings").vectors, strict=True))
    found: list[float | None] = []
    for gloss, odd, silent in wanted:
        near, far = (np.array([vectors[t] @ vectors[gloss] for t in part]) for part in (odd, silent))
        gap = near[:, None] - far[None] if len(near) and len(far) else np.empty(0)
        found.append(float(((gap > 0) + 0.5 * (gap == 0)).mean()) if gap.size else None)
    return found


def ship(work: Path, out: Path) -> None:
    """OUT/NAME.jsonl of every dictionary, beside the lines that stand there."""
    rows = glossed(work)
    scores = {name: answered(work, name) for name in ("blind", "marked")}
    files: dict[str, list[Row]] = {}
    for row, area in zip(rows, auroc(rows, work), strict=True):
        text, key = row["gloss"], (row["sae"], row["feature"])
        senses = next((s for s in ("unclear", "mixed") if s in text.split(":")[0]), "one")
        shown = json.dumps([r["tokens"] for r in row["even"]], ensure_ascii=False)
        line: Row = {
            "feature": row["feature"],
            "gloss": "unclear" if senses == "unclear" else text.removeprefix("mixed: "),
            "senses": senses, "explainer": "language model", "written": "2026-11-28",
            "contexts": hashlib.sha256(shown.encode()).hexdigest()[:16],
        }  # fmt: skip
        for column, count, name in (("detection", "n", "blind"), ("marked", "n_marked", "marked")):
            if key in scores[name]:
                line[column], line[count] = round(scores[name][key][0], 3), scores[name][key][1]
        if area is not None and senses != "unclear":
            line["auroc"] = round(area, 3)
        files.setdefault(row["sae"].partition(":")[2], []).append(line)
    for name, lines in files.items():
        path = out / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = {line["feature"]: line for line in lines}
        if path.is_file():  # what was shipped before stays, but for features that were read again
            known = (json.loads(line) for line in path.read_text().splitlines())
            new = {line["feature"]: line for line in known} | new
        path.write_text("".join(json.dumps(new[n], ensure_ascii=False) + "\n" for n in sorted(new)))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("step", choices=("read", "blind", "marked", "ship"))
    parser.add_argument("--run", type=Path)
    for name in ("label", "sae"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--features", type=Path, help="a JSON list of feature numbers")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.step == "read":
        read(RunFolder(args.run), args.label, args.sae, json.loads(args.features.read_text()), args.work)
    elif args.step == "ship":
        ship(args.work, args.out)
    else:
        blind(args.work, args.step)


if __name__ == "__main__":
    main()
