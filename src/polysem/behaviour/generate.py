"""What pushes of a plan do to texts: drawn in pairs with what comes without them, and told without drawing.

Every arm is pushed on every prompt, both ways, at the length that costs each dose in nats of KL of the next token. Of each
push there are texts, coupled by chance with those without it, and the horizon: the texts without a push are read under it, and
the change of the target's log-odds at every token is a number without a draw or a judge. Pairs are the unit, prompts and draws
are replicates of it. Cost: for every arm, dose, prompt and way n tokens with kept keys and values, and three forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.behaviour.bridge import bridge_rows
from polysem.behaviour.tasks import task_rows
from polysem.behaviour.texts import chunks, distinct, on_target, read_texts, repeated, said, same_tokens
from polysem.edits import Add, Edit
from polysem.errors import ConfigError
from polysem.joint.bench import JointBench
from polysem.models.base import WhiteBoxModel
from polysem.models.generate import Scope, scoped
from polysem.onednn import FrozenLinears
from polysem.progress import SILENT, Reporter
from polysem.saes.base import SAE
from polysem.side_effects.directions import Direction
from polysem.side_effects.measures import jackknife, mean_of
from polysem.side_effects.push import Sets
from polysem.transfer.capability import Item
from polysem.types import Site

ROWS = 128
"""texts drawn at once"""
SIGNS = (1, -1)
LEAST = 0.05
"""of the first effect: below it the decay is not followed"""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TextArm:
    """A source that is pushed, and the target whose tokens are read."""

    relation: str
    target: int
    source: int
    source_sae: str
    site: Site
    vector: Float[np.ndarray, " d"]
    """decoder row of the source"""
    interference: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TextPlan:
    """How much is drawn."""

    doses: tuple[float, ...]
    """nats of KL"""
    n_tokens: int
    draws: int = 1
    temperature: float = 1.0
    scope: Scope = "both"
    positions: str = "all_but_first"
    seed: int = 0


@dataclass(frozen=True)
class _OnPrompt:
    """One prompt with all that was found on it; arrays are [dose, arm, sign, ...]."""

    next: Float[np.ndarray, "doses arms"]
    length: Float[np.ndarray, "doses arms"]
    horizon: Float[np.ndarray, "doses arms scopes n"]
    spent: Float[np.ndarray, "doses arms"]
    count: Float[np.ndarray, "doses arms signs"]
    """target's tokens over draws"""
    hits: Float[np.ndarray, "doses arms signs"]
    nats: Float[np.ndarray, "doses arms"]
    distinct_2: Float[np.ndarray, "doses arms"]
    repeated_4: Float[np.ndarray, "doses arms"]
    same: Float[np.ndarray, "doses arms"]
    count_base: Float[np.ndarray, " arms"]
    hits_base: Float[np.ndarray, " arms"]


_SCOPES: tuple[Scope, ...] = ("prompt", "both")


def text_rows(
    model: WhiteBoxModel,
    sae: SAE,
    arms: Sequence[TextArm],
    prompts: Sequence[tuple[str, Sequence[int]]],
    plan: TextPlan,
    *,
    label: str,
    items: Sequence[Item] = (),
    reporter: Reporter = SILENT,
) -> dict[str, Rows]:
    """Rows of the BEHAVIOUR tables.

    Args:
        sae: dictionary of the targets, which reads the texts.
        arms: what is pushed, and what is read.
        prompts: name and token ids.
        plan: how much is drawn.
        label: of the dictionary.
        items: tasks that are asked under every push.

    Raises:
        ConfigError: no arm, no prompt that leaves room for the tokens, or a dose that cannot be.
    """
    fit = [(name, list(ids)) for name, ids in prompts if len(ids) + plan.n_tokens <= model.spec.n_ctx]
    if not arms or not fit:
        raise ConfigError(
            f"{len(arms)} arms, and {len(fit)} of {len(prompts)} prompts with room for {plan.n_tokens} tokens in a "
            f"context of {model.spec.n_ctx}; expected some of each",
            hint="ask for fewer tokens, or plan pairs of the locus 'feature'",
        )
    rows: dict[str, Rows] = {
        "text_arms": [_arm_row(k, arm, label) for k, arm in enumerate(arms)],
        "texts": [],
        "text_firing": [],
    }
    seen = []
    strengths: list[np.ndarray] = []
    for name, ids in reporter.track(fit, total=len(fit), label="texts"):
        desk = _Desk(model, sae, arms, name, ids, plan)
        with FrozenLinears():
            seen.append(desk.all())
        strengths.append(seen[-1].length)
        rows["texts"] += desk.rows
        rows["text_firing"] += desk.firing
    rows["text_effects"], rows["text_horizon"] = _effects(arms, plan, seen)
    rows["text_bridge"] = bridge_rows(rows["text_arms"], rows["text_effects"])
    rows["text_tasks"] = task_rows(model, arms, items, plan, np.nanmean(strengths, axis=0)) if items else []
    return rows


def _arm_row(k: int, arm: TextArm, label: str) -> dict[str, Any]:
    names = ("relation", "target", "source", "source_sae", "interference", "tokens")
    return {"arm": k, "sae": label, **{n: getattr(arm, n) for n in names}, "tokens": list(arm.tokens)}


class _Desk:
    """One prompt, and every push on it."""

    def __init__(
        self,
        model: WhiteBoxModel,
        sae: SAE,
        arms: Sequence[TextArm],
        name: str,
        ids: list[int],
        plan: TextPlan,
    ):
        self.model, self.sae, self.arms, self.name, self.plan = model, sae, arms, name, plan
        directions = [Direction(f"arm {k}", "feature", arm.site, arm.vector) for k, arm in enumerate(arms)]
        self.bench = JointBench(model, ids, directions, positions=plan.positions)
        self.tokens, self.prompt = self.bench.tokens, len(ids)
        self.sets = Sets([arm.tokens for arm in arms], model.spec.d_vocab)
        self.targets = sorted({arm.target for arm in arms})
        self.column = [self.targets.index(arm.target) for arm in arms]
        self.rows: Rows = []
        self.firing: Rows = []

    def all(self) -> _OnPrompt:
        """Every dose of every arm."""
        plan, n = self.plan, len(self.arms)
        draws = list(range(plan.draws))
        base = self.model.generate(
            self.tokens.expand(plan.draws, -1), n=plan.n_tokens, temperature=plan.temperature, seed=plan.seed, draws=draws
        )  # fmt: skip
        self.base = base.tokens.cpu()
        whole = torch.cat([self.tokens.expand(plan.draws, -1), base.tokens], dim=1)
        self.base_read = read_texts(self.model, self.sae, self.targets, whole, prompt=self.prompt)
        self.base_texts = self.base.tolist()
        for draw, text in enumerate(self.base_texts):
            self._row(-1, 0.0, 0, draw, text, 0, None, None, None, float(self.base_read.nats[draw]))
        self.firing = [
            {"prompt_id": self.name, "draw": draw, "target": target, "acts": acts[:, column].tolist()}
            for draw, acts in enumerate(self.base_read.acts)
            for column, target in enumerate(self.targets)
        ]
        found = [self._dose(dose) for dose in plan.doses]
        stacked = {name: np.stack([one[name] for one in found]) for name in found[0]}
        return _OnPrompt(
            **stacked,
            count_base=np.array([sum(on_target(t, a.tokens) for t in self.base_texts) for a in self.arms], dtype=float),
            hits_base=np.array([self.base_read.fires[:, :, self.column[k]].mean() for k in range(n)]),
        )  # fmt: skip

    def _dose(self, dose: float) -> dict[str, np.ndarray]:
        n, plan = len(self.arms), self.plan
        lengths = self.bench.lengths(dose)
        good = np.flatnonzero(np.isfinite(lengths))
        made = {
            "next": np.full(n, np.nan), "length": lengths, "horizon": np.full((n, 2, plan.n_tokens), np.nan),
            **{name: np.full(n, np.nan) for name in ("spent", "nats", "distinct_2", "repeated_4", "same")},
            **{name: np.full((n, 2), np.nan) for name in ("count", "hits")},
        }  # fmt: skip
        if not len(good):
            return made
        strengths = np.diag(lengths[good]) if len(good) == n else np.eye(n)[good] * np.nan_to_num(lengths)
        seen = self.bench.changes(strengths)
        own = (torch.arange(len(good)), torch.from_numpy(good))
        made["next"][good] = (
            (self.sets.log_odds(seen.up)[own] - self.sets.log_odds(seen.down)[own]) / 2
        ).numpy()
        self._horizon(good, lengths, made)
        self._texts(dose, good, lengths, made)
        return made

    def edits(self, some: Sequence[int], lengths: Float[np.ndarray, " rows"]) -> list[Edit]:
        """A row for each arm; one edit a site."""
        return pushes(self.model, self.bench.edited, [self.arms[k] for k in some], lengths)

    def _horizon(
        self, good: Int[np.ndarray, " m"], lengths: Float[np.ndarray, " n"], made: dict[str, np.ndarray]
    ) -> None:
        """The texts without a push, read under it."""
        plan, whole = self.plan, torch.cat([self.tokens, self.base[:1].to(self.tokens)], dim=1)
        base = self._said(whole, [])[1]
        for s, scope in enumerate(_SCOPES):
            for some in chunks(len(good), whole.shape[1] * self.model.spec.d_vocab):
                at = good[some]
                ends = []
                for sign in SIGNS:
                    edits = scoped(
                        self.edits(at.tolist(), sign * lengths[at]),
                        scope,
                        prompt=self.prompt,
                        n=plan.n_tokens + 1,
                    )
                    logits, own = self._said(whole.expand(len(at), -1), edits)
                    odds = torch.stack(
                        [self.sets.log_odds(row)[:, k] for row, k in zip(logits, at.tolist(), strict=True)]
                    )
                    ends.append((odds.numpy(), (base - own).mean(1).numpy()))
                made["horizon"][at, s] = (ends[0][0] - ends[1][0]) / 2
                if scope == "both":
                    made["spent"][at] = (ends[0][1] + ends[1][1]) / 2

    def _said(self, whole: Int[Tensor, "rows pos"], edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """(logits, log-probability of the text's own tokens), at the positions that the text's tokens come from."""
        logits = self.model.logits(whole, edits)[:, self.prompt - 1 : -1].cpu()
        return logits, said(logits, whole[:, self.prompt :].cpu())

    def _texts(
        self,
        dose: float,
        good: Int[np.ndarray, " m"],
        lengths: Float[np.ndarray, " n"],
        made: dict[str, np.ndarray],
    ) -> None:
        plan = self.plan
        asked = [(int(k), sign, draw) for k in good for sign in SIGNS for draw in range(plan.draws)]
        got: dict[tuple[int, int], list[tuple[float, ...]]] = {}
        for at in range(0, len(asked), ROWS):
            some = asked[at : at + ROWS]
            ks = [k for k, _, _ in some]
            edits = self.edits(ks, np.array([sign * lengths[k] for k, sign, _ in some]))
            drawn = self.model.generate(
                self.tokens.expand(len(some), -1), edits, n=plan.n_tokens, scope=plan.scope,
                temperature=plan.temperature, seed=plan.seed, draws=[draw for *_, draw in some],
            )  # fmt: skip
            whole = torch.cat([self.tokens.expand(len(some), -1), drawn.tokens], dim=1)
            read = read_texts(self.model, self.sae, self.targets, whole, prompt=self.prompt)
            for r, ((k, sign, draw), text) in enumerate(zip(some, drawn.tokens.tolist(), strict=True)):
                same = same_tokens(text, self.base_texts[draw])
                count = on_target(text, self.arms[k].tokens)
                acts = read.acts[r, :, self.column[k]]
                nats = float(read.nats[r])
                ran = int(drawn.edited[:, r].sum())
                self._row(k, dose, sign, draw, text, ran, same, count, acts, nats)
                base = self.base_texts[draw]
                change = (
                    nats - float(self.base_read.nats[draw]), distinct(text) - distinct(base), repeated(text) - repeated(base)
                )  # fmt: skip
                got.setdefault((k, sign), []).append((count, float((acts > 0).mean()), *change, same))
        for (k, sign), values in got.items():
            made["count"][k, SIGNS.index(sign)] = sum(v[0] for v in values)
            made["hits"][k, SIGNS.index(sign)] = np.mean([v[1] for v in values])
        for k in good.tolist():
            both = np.array(got[k, 1] + got[k, -1])
            for place, name in enumerate(("nats", "distinct_2", "repeated_4", "same"), start=2):
                made[name][k] = both[:, place].mean()

    def _row(
        self, arm: int, dose: float, sign: int, draw: int, text: list[int], edited: int, same: int | None,
        count: int | None, acts: Float[np.ndarray, " n"] | None, nats: float,
    ) -> None:  # fmt: skip
        self.rows.append(
            {
                "arm": arm, "prompt_id": self.name, "dose": dose, "sign": sign, "draw": draw, "tokens": text,
                "text": self.model.detokenize(text), "pieces": self.model.token_strings(text),
                "edited": edited, "same": same, "on_target": count,
                "hits": None if acts is None else float((acts > 0).mean()), "acts": None if acts is None else acts.tolist(),
                "nats": nats, "distinct_2": distinct(text), "repeated_4": repeated(text),
            }
        )  # fmt: skip


def pushes(
    model: WhiteBoxModel, edited: Tensor, arms: Sequence[TextArm], lengths: Float[np.ndarray, " rows"]
) -> list[Edit]:
    """One edit for each site, a row for each arm: its unit direction times its length, where `edited` says."""
    dtype = torch.float64 if model.spec.dtype == "float64" else torch.float32
    made: list[Edit] = []
    for site in dict.fromkeys(arm.site for arm in arms):
        here = np.array([arm.site == site for arm in arms])
        vectors = np.zeros((len(arms), model.site_width(site)))
        for k in np.flatnonzero(here).tolist():
            vectors[k] = lengths[k] * arms[k].vector / np.linalg.norm(arms[k].vector)
        mask = edited[None] & torch.from_numpy(here).to(edited.device)[:, None]
        made.append(Add(site, torch.as_tensor(vectors, dtype=dtype, device=model.spec.device), mask))
    return made


def decay(curve: Float[np.ndarray, " n"]) -> float:
    """Factor per token by which an effect falls, from the logarithms of its values until they are small or turn; NaN where
    two tokens do not have one."""
    first = curve[0] if len(curve) else 0.0
    if not np.isfinite(first) or first == 0:
        return float("nan")
    size = curve / first
    over = np.flatnonzero(~(size > LEAST))
    n = int(over[0]) if len(over) else len(curve)
    if n < 2:
        return float("nan")
    x, y = np.arange(n), np.log(size[:n])
    return float(np.exp(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()))


def _effects(arms: Sequence[TextArm], plan: TextPlan, seen: Sequence[_OnPrompt]) -> tuple[Rows, Rows]:
    """Rows of TEXT_EFFECTS and TEXT_HORIZON."""
    rows: Rows = []
    curves: Rows = []
    drawn = plan.n_tokens * plan.draws
    for d, dose in enumerate(plan.doses):
        for k in range(len(arms)):
            places = np.array(
                [p for p, one in enumerate(seen) if np.isfinite(one.length[d, k])], dtype=np.int64
            )
            if not len(places):
                continue
            up, down = (np.array([one.count[d, k, s] for one in seen]) for s in (0, 1))
            columns = {
                "next": [one.next[d, k] for one in seen],
                "horizon": [one.horizon[d, k, 1].mean() for one in seen],
                "hits": [(one.hits[d, k, 0] - one.hits[d, k, 1]) / 2 for one in seen],
                "nats": [one.nats[d, k] for one in seen],
                "spent": [one.spent[d, k] for one in seen],
            }
            row: dict[str, Any] = {"arm": k, "dose": dose}
            for name, values in columns.items():
                row |= mean_of(np.array(values), places).columns(name, f"{name}_")
            rate = jackknife(
                # half a token more on either side, so that no rate is 0 (Haldane)
                lambda some, up=up, down=down: float(
                    np.log((up[some].sum() + 0.5) / (down[some].sum() + 0.5)) / 2
                ),
                places,
            )
            row |= rate.columns("log_rate", "log_rate_")
            mean = np.mean([seen[p].horizon[d, k] for p in places], axis=0)
            per = 100 / drawn
            row |= {
                "strength": float(np.mean([seen[p].length[d, k] for p in places])), "decay": decay(mean[0]),
                "rate": float(np.mean([seen[p].count_base[k] for p in places])) * per,
                "rate_up": float(up[places].mean()) * per, "rate_down": float(down[places].mean()) * per,
                "hits_base": float(np.mean([seen[p].hits_base[k] for p in places])),
                **{n: float(np.mean([getattr(seen[p], n)[d, k] for p in places])) for n in ("distinct_2", "repeated_4", "same")},
                "n_prompts": len(places), "n_texts": 2 * plan.draws * len(places),
            }  # fmt: skip
            rows.append(row)
            curves += [
                {"arm": k, "dose": dose, "scope": str(scope), "step": step, "effect": float(mean[s, step])}
                for s, scope in enumerate(_SCOPES)
                for step in range(plan.n_tokens)
                if np.isfinite(mean[s, step])
            ]
    return rows, curves
