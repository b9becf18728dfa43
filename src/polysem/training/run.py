"""From a harvest to a folder that `load_sae` reads: batches from the disk, checkpoints, fidelity, model card.

The last twentieth of the harvest's parts is held out and only measured on. Batches are drawn without
replacement from a few parts in memory at a time, in an order that the seed and the pass through the data
decide, so that a run that goes on from its checkpoint sees what an uninterrupted one would have seen.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.boundary.door import Door, telling
from polysem.boundary.files import regular
from polysem.boundary.settings import setting
from polysem.boundary.text import json_object, parse_json
from polysem.errors import ConfigError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for, short_hash
from polysem.store.io import replacing
from polysem.training.fit import (
    Batches,
    Scales,
    State,
    TrainingRecipe,
    finished,
    measure,
    start,
    train,
)
from polysem.training.harvest import ROWS_A_PART, StoredActivations
from polysem.training.write import write
from polysem.types import Site

PARTS_AT_ONCE = 16
"""parts in memory: a quarter of a million tokens of 128-token rows, shuffled together"""
CHECKPOINT_EVERY = 200
_MEASURED = 4
"""parts that scales are measured on"""


@dataclass(frozen=True)
class Split:
    """Which parts are trained on and which only measured on."""

    harvest: StoredActivations
    reads: Site
    writes: Site

    @property
    def held_out(self) -> list[int]:
        n = self.harvest.n_parts
        if n < 2:
            raise ConfigError(
                f"the harvest has {n} part; one more is needed, to measure on", hint="raise --tokens"
            )
        return list(range(n - max(1, n // 20), n))

    @property
    def trained(self) -> list[int]:
        return list(range(self.held_out[0]))

    def rows(self, parts: list[int]) -> tuple[Tensor, Tensor]:
        """(inputs, outputs) of parts, float16; the same tensor twice for an autoencoder."""
        x, y = (
            torch.cat([torch.from_numpy(np.array(self.harvest.part(site, n))).flatten(0, 1) for n in parts])
            for site in (self.reads, self.writes)
        )
        return (x, x) if self.reads == self.writes else (x, y)


def batches(split: Split, recipe: TrainingRecipe, device: str) -> Batches:
    """Batches from any step on, without end."""

    def groups(turn: int) -> list[list[int]]:
        order = rng_for(recipe.seed, "parts", turn).permutation(split.trained).tolist()
        return [order[k : k + PARTS_AT_ONCE] for k in range(0, len(order), PARTS_AT_ONCE)]

    def size(parts: list[int]) -> int:
        shapes = [split.harvest.part(split.reads, n).shape for n in parts]
        return sum(rows * pos for rows, pos, _ in shapes) // recipe.batch

    def run(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not sum(size(parts) for parts in groups(0)):
            raise ConfigError(
                f"no group of parts fills a batch of {recipe.batch} tokens",
                hint="raise --tokens, or lower --batch",
            )
        turn, behind = 0, step
        while True:
            for number, parts in enumerate(groups(turn)):
                n = size(parts)
                if behind >= n:
                    behind -= n
                    continue
                x, y = split.rows(parts)
                order = rng_for(recipe.seed, "tokens", turn, number).permutation(len(x))
                for k in range(behind, n):
                    chosen = torch.from_numpy(order[k * recipe.batch : (k + 1) * recipe.batch])
                    inputs = x[chosen].to(device)
                    yield inputs, inputs if x is y else y[chosen].to(device)
                behind = 0
            turn += 1

    return run


def train_dictionary(
    split: Split,
    recipe: TrainingRecipe,
    out: Path,
    *,
    checkpoint: Path,
    device: str = "cpu",
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Train what is left to train, write the folder and give its card.

    Args:
        split: the activations.
        recipe: how it is trained.
        out: the dictionary's folder.
        checkpoint: file of the state, written every CHECKPOINT_EVERY steps.
        device: where the weights live.
        reporter: told of every step.

    Raises:
        ConfigError: if there are too few tokens.
        StoreError: if the checkpoint is of another recipe, or a file cannot be written.
    """
    x, y = split.rows(split.trained[:_MEASURED])
    inputs = x.to(device)
    scales = measure(inputs, inputs if x is y else y.to(device), times=recipe.massive)
    state = start(recipe, scales, d_in=x.shape[1], autoencoder=split.reads == split.writes)
    mark = short_hash(asdict(recipe), split.harvest.about, str(split.reads), str(split.writes))
    if checkpoint.is_file():
        restore(state, checkpoint, mark=mark)
    steps = iter(
        reporter.track(range(state.step, recipe.steps), total=recipe.steps, label="training", done=state.step)
    )

    def each(state: State, seen: dict[str, float]) -> None:
        next(steps, None)
        if state.step % CHECKPOINT_EVERY == 0 or state.step == recipe.steps:
            save(state, checkpoint, mark=mark)

    next(steps, None)
    train(recipe, scales, state, batches(split, recipe, device), each=each)
    weights = {name: t.cpu().half().float() for name, t in finished(recipe, scales, state).items()}
    card = _card(split, recipe, scales, state, weights)
    about = {
        "model_name": split.harvest.about["model"], "context_size": split.harvest.about["tokens_a_row"] + 1,
        "dataset_path": split.harvest.about["corpus"], "training_seed": recipe.seed,
        "training_tokens": recipe.steps * recipe.batch,
        "training_architecture": "matryoshka" if recipe.prefixes else recipe.select,
    }  # fmt: skip
    write(out, weights, reads=split.reads, writes=split.writes, k=recipe.k, about=about, card=card)
    return card


def _card(
    split: Split, recipe: TrainingRecipe, scales: Scales, state: State, weights: dict[str, Tensor]
) -> dict[str, Any]:
    x, y = split.rows(split.held_out)
    dead = float((state.since_fired > recipe.dead_after).float().mean())
    about = split.harvest.about
    return {
        **asdict(recipe), **fidelity(weights, x, y, recipe=recipe, scales=scales), "dead": dead,
        "reads": str(split.reads), "writes": str(split.writes), "model": about["model"], "text": about["corpus"],
        "tokens_unique": len(split.trained) * ROWS_A_PART * int(about["tokens_a_row"]),
        "tokens_seen": recipe.steps * recipe.batch, "read_median": scales.read_median,
        "write_median": scales.write_median, "mean_norm": scales.read,
    }  # fmt: skip


@torch.no_grad()
def fidelity(
    weights: dict[str, Tensor],
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    *,
    recipe: TrainingRecipe,
    scales: Scales,
) -> dict[str, float]:
    """FVU of ordinary tokens and of all, L0, and the share of latents active on none of these tokens."""
    errors, usual, active, fired = [], [], 0, torch.zeros(recipe.d_sae, dtype=torch.bool)
    for a, b in zip(x.split(4096), y.split(4096), strict=True):
        a, b = a.float().cpu(), b.float().cpu()
        pre = a @ weights["W_enc"] + weights["b_enc"]
        if "threshold" in weights:
            acts = pre * (pre > weights["threshold"])
        else:
            values, chosen = pre.topk(recipe.k, dim=1)
            acts = torch.zeros_like(pre).scatter(1, chosen, values.relu())
        out = acts @ weights["W_dec"] + weights["b_dec"]
        if "W_skip" in weights:
            out += a @ weights["W_skip"].t()
        errors.append((b - out).pow(2).sum(dim=1))
        limits = (recipe.massive * median for median in (scales.read_median, scales.write_median))
        usual.append(
            ~torch.stack([v.norm(dim=1) > limit for v, limit in zip((a, b), limits, strict=True)]).any(0)
        )
        active += int((acts > 0).sum())
        fired |= (acts > 0).any(dim=0)
    error, ordinary, target = torch.cat(errors), torch.cat(usual), y.float().cpu()
    kept = target[ordinary]
    return {
        "fvu": float(error[ordinary].sum() / (kept - kept.mean(dim=0)).pow(2).sum()),
        "fvu_all": float(error.sum() / (target - target.mean(dim=0)).pow(2).sum()),
        "l0": active / len(target),
        "silent_held_out": float((~fired).float().mean()),
        "ordinary_share": float(ordinary.float().mean()),
        "n_held_out": len(target),
    }


def save(state: State, path: Path, *, mark: str) -> None:
    """Write a checkpoint, whole."""
    from safetensors.torch import save as pack

    tensors = {f"weight.{name}": t.detach() for name, t in state.weights.named().items()}
    for name, tensor in state.weights.named().items():
        for key, value in state.optimizer.state[tensor].items():
            tensors[f"adam.{name}.{key}"] = torch.as_tensor(value)
    tensors["since_fired"] = state.since_fired
    told = {"step": state.step, "threshold": state.threshold, "mark": mark}
    with replacing(path) as stream:
        stream.write(
            pack({n: t.contiguous() for n, t in tensors.items()}, metadata={"state": json.dumps(told)})
        )


def restore(state: State, path: Path, *, mark: str) -> None:
    """Bring a state to a checkpoint.

    Raises:
        StoreError: if it is damaged, or of another recipe or other activations.
    """
    from safetensors import safe_open

    door = Door("checkpoint", f"delete {path} to begin anew", StoreError, StoreError)
    with telling(door, path, doing="is no whole checkpoint"):
        regular(path, door=door)
        with safe_open(path, framework="pt", device=str(state.since_fired.device)) as file:
            told = json_object(parse_json((file.metadata() or {})["state"], path, door=door), path, door=door)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if told["mark"] != mark:
            raise StoreError(
                f"{path} is the checkpoint of another recipe or of other activations",
                hint=f"delete {path} to begin anew, or give another --out",
            )
        step, threshold = (
            setting(told, "step", int, where=path),
            setting(told, "threshold", float, where=path),
        )
        since_fired, weights = found["since_fired"], state.weights.named()
        if step is None or threshold is None or since_fired.shape != state.since_fired.shape:
            raise ValueError("it lacks the step or the threshold, or is of another number of features")
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(found[f"weight.{name}"])
                moments = {k.rsplit(".", 1)[1]: v for k, v in found.items() if k.startswith(f"adam.{name}.")}
                state.optimizer.state[tensor] = moments
    state.since_fired, state.step, state.threshold = since_fired, step, threshold
