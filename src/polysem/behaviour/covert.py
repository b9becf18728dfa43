"""Pushes that raise a concept by the same, and what sees them: detectors at the site, later, of the output and of the text.

Every push is made on every prompt without the concept, at the length that raises the log-odds of its tokens by an effect, and the
same prompt without it is what detectors are to tell it from. An audit of local models: no push is sought that evades a detector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.behaviour.handle import Handle, lengths_to_effect
from polysem.behaviour.intervals import mean_interval, paired_auroc, paired_placements, within
from polysem.behaviour.monitors import logistic
from polysem.edits import Add, Edit
from polysem.readouts import kl
from polysem.saes.base import encoder_input
from polysem.seeds import rng_for
from polysem.types import Site

DETECTORS = ("target", "reader", "site", "later", "output", "text")
LINEAR = ("site", "later", "output", "text")
TEXT = 8
"""drawn tokens that are read"""
WORDS = (1, 2, 4, 8)
"""of the concept, put in front of a prompt"""
LEAST = 4
"""prompts on which a push has to reach its effect"""
Watched = Mapping[str, Float[np.ndarray, "rows k"]]


class CovertPush(NamedTuple):
    """One push."""

    kind: str
    number: int
    vector: Float[np.ndarray, " d"] | None
    """None: words in front of the prompt"""


@dataclass(frozen=True)
class PushScores:
    """One push of one effect as one detector sees it, by prompt; NaN where the effect is not reached."""

    arm: CovertPush
    detector: str
    effect: float
    length: Float[np.ndarray, " prompts"]
    kl: Float[np.ndarray, " prompts"]
    clean: Float[np.ndarray, " prompts"]
    pushed: Float[np.ndarray, " prompts"]
    folds: Int[np.ndarray, " prompts"]

    def values(self, some: Bool[np.ndarray, " prompts"]) -> Float[np.ndarray, " n"]:
        """Whose mean is the AUROC (`paired_placements`)."""
        return paired_placements(self.clean[some], self.pushed[some], self.folds[some])

    @property
    def there(self) -> Bool[np.ndarray, " prompts"]:
        return np.isfinite(self.pushed)


class Covert:
    """Prompts, pushes and detectors."""

    def __init__(
        self,
        handle: Handle,
        reader: int,
        prompts: Sequence[Sequence[int]],
        arms: Sequence[CovertPush],
        *,
        later: Site | None,
        seed: int = 0,
    ):
        self.handle, self.reader, self.prompts, self.arms = handle, reader, prompts, list(arms)
        self.later, self.seed = later, seed
        self.clean = [self._watch(k, ids, [], 1) for k, ids in enumerate(prompts)]

    def scores(self, effect: float) -> list[PushScores]:
        """Every push at an effect, by every detector."""
        n, p = len(self.arms), len(self.prompts)
        length, cost = np.full((n, p), np.nan), np.full((n, p), np.nan)
        seen: list[dict[int, Watched]] = []
        for k, ids in enumerate(self.prompts):
            seen.append({})
            self._pushed(k, ids, effect, length, cost, seen[-1])
        return [
            self._score(a, name, effect, length[a], cost[a], [one.get(a) for one in seen])
            for a in range(n)
            for name in self.clean[0]
        ]

    def _pushed(
        self, k: int, ids: Sequence[int], effect: float, length: np.ndarray, cost: np.ndarray, seen: dict[int, Watched]
    ) -> None:  # fmt: skip
        handle = self.handle
        vectors = {a: arm.vector for a, arm in enumerate(self.arms) if arm.vector is not None}
        found = lengths_to_effect(handle, ids, np.stack(list(vectors.values())), effect)
        some = np.flatnonzero(np.isfinite(found))
        rows = np.array(list(vectors))[some]
        plain = handle.logits(ids, [])
        if len(some):
            unit = np.stack([vectors[a] / np.linalg.norm(vectors[a]) for a in rows.tolist()])
            mask = torch.ones(len(some), len(ids), dtype=torch.bool, device=handle.model.spec.device)
            mask[:, 0] = False
            push = Add(handle.sae.writes, handle.tensor(unit * found[some, None]), mask)
            made = self._watch(k, ids, [push], len(some))
            length[rows, k] = np.abs(found[some])
            cost[rows, k] = np.asarray(kl(plain, handle.logits(ids, [push], rows=len(some)))).ravel()
            seen.update(
                {a: {name: x[r : r + 1] for name, x in made.items()} for r, a in enumerate(rows.tolist())}
            )
        rng = rng_for(self.seed, "guard", "words", str(k))
        drawn = rng.choice(handle.tokens, size=max(WORDS)).tolist()
        for a in (a for a, arm in enumerate(self.arms) if arm.vector is None):
            for many in WORDS:
                longer = [ids[0], *drawn[:many], *ids[1:]]
                if len(longer) + TEXT > handle.model.spec.n_ctx:
                    break
                logits = handle.logits(longer, [])
                if handle.odds(logits)[0] - handle.odds(plain)[0] >= effect:
                    length[a, k], cost[a, k] = many, float(np.asarray(kl(plain, logits)).ravel()[0])
                    seen[a] = self._watch(k, longer, [], 1)
                    break

    def _watch(self, k: int, ids: Sequence[int], edits: Sequence[Edit], rows: int) -> Watched:
        """What detectors read of one prompt's rows."""
        handle, model, sae = self.handle, self.handle.model, self.handle.sae
        tokens = torch.tensor([list(ids)], device=model.spec.device).expand(rows, -1)
        sites = [sae.reads, *([self.later] if self.later else [])]
        seen = {site: x[:, -1].cpu() for site, x in model.capture(tokens, sites, edits).items()}
        h = seen[sae.reads]
        pre = (encoder_input(sae, h) @ sae.W_enc[:, [handle.features[0], self.reader]]).detach()
        logp = handle.logits(ids, edits, rows=rows).log_softmax(-1)
        output = torch.stack([-(logp.exp() * logp).sum(-1), logp.max(-1).values], dim=1)
        found = {"target": pre[:, :1], "reader": pre[:, 1:], "site": h, "output": output}
        if self.later:
            found["later"] = seen[self.later]
        if len(ids) + TEXT <= model.spec.n_ctx:
            found["text"] = self._text(k, tokens, edits)
        return {name: found[name].double().numpy() for name in DETECTORS if name in found}

    def _text(self, k: int, tokens: Tensor, edits: Sequence[Edit]) -> Float[Tensor, "rows 1"]:
        """Nats per token of a text that is drawn, under the model without a push; chance is that of the prompt."""
        model, rows = self.handle.model, len(tokens)
        text = model.generate(tokens, edits, n=TEXT, seed=self.seed, draws=[k] * rows).tokens
        whole = torch.cat([tokens, text], dim=1)
        logp = model.logits(whole)[:, tokens.shape[1] - 1 : -1].cpu().double().log_softmax(-1)
        return -logp.gather(2, text[..., None].cpu())[..., 0].mean(1, keepdim=True)

    def _score(
        self,
        a: int,
        name: str,
        effect: float,
        length: np.ndarray,
        cost: np.ndarray,
        seen: Sequence[Watched | None],
    ) -> PushScores:
        p = len(self.prompts)
        ok = np.flatnonzero([one is not None for one in seen])
        clean, pushed = np.full(p, np.nan), np.full(p, np.nan)
        folds = np.zeros(p, dtype=np.int64)
        made = PushScores(self.arms[a], name, effect, length, cost, clean, pushed, folds)
        if len(ok) < LEAST:
            return made
        without = np.concatenate([self.clean[k][name] for k in ok])
        under = np.concatenate([one[name] for one in seen if one is not None])
        if name not in LINEAR:
            clean[ok], pushed[ok] = without[:, 0], under[:, 0]
            return made
        folds[ok] = np.arange(len(ok)) % 2
        for fold in (0, 1):
            own = folds[ok] == fold
            x = np.concatenate([without[~own], under[~own]])
            weights, _ = logistic(x, np.repeat([False, True], (~own).sum()))
            clean[ok[own]], pushed[ok[own]] = without[own] @ weights, under[own] @ weights
        return made


def evasion_rows(scores: Sequence[PushScores], interference: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of GUARD_EVASION.

    Args:
        scores: of every effect.
        interference: cosine of every one's push with the target's decoder row.
    """
    own = {(s.effect, s.detector): s for s in scores if s.arm.kind == "target"}
    rows = []
    for s, cosine in zip(scores, interference, strict=True):
        if s.there.sum() < LEAST:
            continue
        seen = paired_auroc(s.values(s.there))
        gap = within(mean_interval(gaps(own[s.effect, s.detector], s)[1]), -1.0, 1.0)
        rows.append(
            {
                "effect": s.effect, "kind": s.arm.kind, "feature": s.arm.number, "detector": s.detector,
                "interference": cosine, "length": float(s.length[s.there].mean()), "kl": float(s.kl[s.there].mean()),
                **seen.columns("seen"), **gap.columns("gap", "gap_"),
                "n_prompts": int(s.there.sum()),
            }
        )  # fmt: skip
    return rows


def gaps(target: PushScores, other: PushScores) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(prompts that both reach, a number for each whose mean is the AUROC of the target's own push minus the other's)."""
    shared = target.there & other.there
    if shared.sum() < LEAST:
        return np.empty(0, dtype=np.int64), np.empty(0)
    return np.flatnonzero(shared), target.values(shared) - other.values(shared)
