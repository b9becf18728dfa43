"""Train the zoo's transcoders with `polysem.training` on activations of `zoo:gpt2`: seeded, resumable, with progress.

    python transcoders.py --books books.tar.xz --work WORK [--set plt] [--steps 300]

Three sets, each read behind the norm of the MLP (mlp.hook_in) and written where it writes (hook_mlp_out): `plt`, one
transcoder a layer; `plt-skip`, smaller, with a linear path beside the latents; `clt`, whose latents write their own and
all later layers. All are BatchTopK of 16 active latents a token and layer while they learn, and JumpReLU with the running
mean of the smallest active value when they are done. A cross-layer layer learns as one dictionary whose output is the
written layers side by side, each divided by its standard deviation; the error is of the sum over layers.
What is written is circuit-tracer's folder, float16. Cost: 131,072 tokens of activations take 0.4 GB;
the three sets took 16 minutes, one thread each, on a machine that did other things.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import read_books, sequences, token_stream
from models import CONTEXT, RECIPES
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from polysem.models import load_model
from polysem.seeds import rng_for
from polysem.training.dictionary import AUXILIARY, auxiliary, decode, encode, keep_decoder, unit_rows
from polysem.training.fit import Scales, State, TrainingRecipe, finished, measure, rate, start, train
from polysem.training.harvest import StoredActivations, harvest
from polysem.types import Site

MODEL = "gpt2"
READ, WRITE = "mlp.hook_in", "hook_mlp_out"
EVERY = 12
"""one training book in so many is tokenized: many times what is drawn from it"""
BATCH = 2048
PARTS_AT_ONCE = 8
MEASURED = 2
"""parts that scales are measured on"""
CHECKPOINT_EVERY = 100
RECIPE = TrainingRecipe(d_sae=1536, k=16, select="batchtopk", batch=BATCH, dead_after=50 * BATCH)
SETS = {
    "plt": RECIPE,
    "clt": replace(RECIPE, d_sae=768),
    "plt-skip": replace(RECIPE, d_sae=512, skip=True),
}


def batches(
    store: StoredActivations, sites: list[Site], *, seed: int, start_at: int = 0
) -> Iterator[list[Tensor]]:
    """Activations [BATCH, d] of all sites, each pass in a new order; from a step on, as an uninterrupted run saw them."""
    turn, behind = 0, start_at
    while True:
        order = rng_for(seed, "parts", turn).permutation(store.n_parts).tolist()
        for k in range(0, len(order), PARTS_AT_ONCE):
            parts = order[k : k + PARTS_AT_ONCE]
            size = sum(int(np.prod(store.part(sites[0], n).shape[:2])) for n in parts) // BATCH
            if behind >= size:
                behind -= size
                continue
            held = [
                torch.cat([torch.from_numpy(np.array(store.part(site, n))).flatten(0, 1) for n in parts])
                for site in sites
            ]
            shuffled = torch.from_numpy(rng_for(seed, "tokens", turn, k).permutation(len(held[0])))
            for n in range(behind, size):
                chosen = shuffled[n * BATCH : (n + 1) * BATCH]
                yield [one[chosen].float() for one in held]
            behind = 0
        turn += 1


def sample(store: StoredActivations, site: Site) -> Tensor:
    """Activations [n, d] that scales are measured on."""
    return torch.cat(
        [torch.from_numpy(np.array(store.part(site, n))).flatten(0, 1) for n in range(MEASURED)]
    ).float()


def one_layer(store: StoredActivations, layer: int, recipe: TrainingRecipe) -> dict[str, Tensor]:
    """A per-layer transcoder's tensors, in circuit-tracer's layout."""
    sites = [Site(layer, READ), Site(layer, WRITE)]
    scales = measure(*(sample(store, site) for site in sites))
    state = start(recipe, scales, d_in=sample(store, sites[0]).shape[1], autoencoder=False)
    bar = tqdm(total=recipe.steps, desc=f"layer {layer}", unit="step", mininterval=5)

    def each(state: State, seen: dict[str, float]) -> None:
        bar.update()
        if seen:
            bar.set_postfix(seen)

    def stream(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x, y) for x, y in batches(store, sites, seed=recipe.seed, start_at=step))

    train(recipe, scales, state, stream, each=each)
    bar.close()
    found = finished(recipe, scales, state)
    skip = {"W_skip": found["W_skip"]} if recipe.skip else {}
    return {
        "W_enc": found["W_enc"].T, "W_dec": found["W_dec"], "b_enc": found["b_enc"], "b_dec": found["b_dec"],
        "activation_function.threshold": found["threshold"], **skip,
    }  # fmt: skip


class CrossLayer:
    """A cross-layer set being learnt: one dictionary a layer, its output all layers from its own on, side by side."""

    def __init__(self, store: StoredActivations, n_layers: int, recipe: TrainingRecipe):
        self.recipe, self.n = recipe, n_layers
        self.read = [measure(x, x) for x in (sample(store, Site(n, READ)) for n in range(n_layers))]
        self.write = [measure(y, y) for y in (sample(store, Site(n, WRITE)) for n in range(n_layers))]
        self.d = len(self.write[0].mean)
        self.into = [math.sqrt(self.d) / one.read for one in self.read]
        self.out = [math.sqrt(self.d / one.variance) for one in self.write]
        self.states = [self._state(n) for n in range(n_layers)]

    def _state(self, n: int) -> State:
        """Layer n's; the bias of a written layer is learnt by its own dictionary, and only starts as the mean there."""
        means = [self.write[m].mean * self.out[m] * (m == n) for m in range(n, self.n)]
        mean = torch.cat(means)
        scales = Scales(1.0, math.sqrt(len(mean)), 1.0, 1.0, mean, 1.0)
        recipe = replace(self.recipe, seed=self.recipe.seed + n)
        return start(recipe, scales, d_in=self.d, autoencoder=False)

    def step(self, taken: list[Tensor], number: int) -> tuple[float, float]:
        """One step on a batch of all reads, then all writes: (mean FVU of the batch, share of dead latents)."""
        recipe = self.recipe
        x = [one * scale for one, scale in zip(taken[: self.n], self.into, strict=True)]
        y = [one * scale for one, scale in zip(taken[self.n :], self.out, strict=True)]
        codes = [
            encode(s.weights, one, k=recipe.k, select="batchtopk")
            for s, one in zip(self.states, x, strict=True)
        ]
        wholes = [
            decode(s.weights, c, one, prefixes=(recipe.d_sae,))[0]
            for s, c, one in zip(self.states, codes, x, strict=True)
        ]
        parts = [whole.split(self.d, dim=1) for whole in wholes]
        rest = [y[m] - sum(parts[n][m - n] for n in range(m + 1)) for m in range(self.n)]
        losses = torch.stack([one.pow(2).sum(1).mean() / self.d for one in rest])
        loss, dead_share = losses.mean(), 0.0
        for n, (state, code) in enumerate(zip(self.states, codes, strict=True)):
            fired = torch.zeros(recipe.d_sae, dtype=torch.bool)
            fired[code.col[code.values.detach() > 0]] = True
            state.since_fired += len(x[n])
            state.since_fired[fired] = 0
            dead = state.since_fired > recipe.dead_after
            dead_share += float(dead.float().mean()) / self.n
            if bool(dead.any()):
                left = torch.cat([one.detach() for one in rest[n:]], dim=1)
                loss = (
                    loss
                    + AUXILIARY
                    * auxiliary(state.weights, x[n], left, torch.ones(len(left)), dead=dead)
                    / self.n
                )
            lowest = float(code.values.detach().min())
            state.threshold = lowest if number == 0 else 0.99 * state.threshold + 0.01 * lowest
            for group in state.optimizer.param_groups:
                group["lr"] = recipe.lr * rate(number, recipe.steps)
            state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for state in self.states:
            keep_decoder(state.weights)
            torch.nn.utils.clip_grad_norm_(list(state.weights.named().values()), 1.0)
            state.optimizer.step()
            unit_rows(state.weights)
        return float(losses.mean()), dead_share

    @torch.no_grad()
    def tensors(self) -> list[tuple[dict[str, Tensor], Tensor]]:
        """({W_enc, b_enc, b_dec, threshold}, W_dec [d_sae, written layers, d]) by layer, for the model's own activations.

        Activations are given the scale at which a row has unit norm over all that it writes.
        """
        found = []
        for n, state in enumerate(self.states):
            weights = state.weights
            out = torch.tensor(self.out[n:])[None, :, None]
            rows = weights.W_dec.view(len(weights.W_dec), self.n - n, self.d) / out
            size = rows.flatten(1).norm(dim=1)
            bias = sum(
                other.weights.b_dec.view(self.n - m, self.d)[n - m]
                for m, other in enumerate(self.states[: n + 1])
            )
            own = {
                f"W_enc_{n}": weights.W_enc * self.into[n] * size[:, None], f"b_enc_{n}": weights.b_enc * size,
                f"b_dec_{n}": bias / self.out[n], f"threshold_{n}": state.threshold * size,
            }  # fmt: skip
            found.append((own, rows / size[:, None, None]))
        return found


def save_state(learnt: CrossLayer, step: int, path: Path) -> None:
    """A checkpoint, whole."""
    partial = path.with_suffix(".partial")
    states = [
        (s.weights.named(), s.optimizer.state_dict(), s.since_fired, s.threshold) for s in learnt.states
    ]
    torch.save({"step": step, "states": states}, partial)
    partial.replace(path)


def restore_state(learnt: CrossLayer, path: Path) -> int:
    """Bring a set to a checkpoint; gives the step."""
    found = torch.load(path, weights_only=True)
    for state, (weights, optimiser, since_fired, threshold) in zip(
        learnt.states, found["states"], strict=True
    ):
        with torch.no_grad():
            for name, tensor in state.weights.named().items():
                tensor.copy_(weights[name])
        state.optimizer.load_state_dict(optimiser)
        state.since_fired, state.threshold = since_fired, threshold
    return found["step"]


def cross_layer(
    store: StoredActivations, n_layers: int, recipe: TrainingRecipe, checkpoint: Path
) -> CrossLayer:
    """A cross-layer set, trained."""
    learnt = CrossLayer(store, n_layers, recipe)
    done = restore_state(learnt, checkpoint) if checkpoint.exists() else 0
    sites = [Site(n, point) for point in (READ, WRITE) for n in range(n_layers)]
    bar = tqdm(
        range(done, recipe.steps), total=recipe.steps, initial=done, desc="clt", unit="step", mininterval=5
    )
    for number, taken in zip(bar, batches(store, sites, seed=recipe.seed, start_at=done), strict=False):
        loss, dead = learnt.step(taken, number)
        if number % 50 == 49:
            bar.set_postfix(loss=loss, dead=dead)
        if number % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
            save_state(learnt, number + 1, checkpoint)
    return learnt


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they are shipped."""
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def make(name: str, store: StoredActivations, n_layers: int, recipe: TrainingRecipe, out: Path) -> None:
    """A set's folder; it appears only when it is complete."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    cross = name == "clt"
    if cross:
        learnt = cross_layer(store, n_layers, recipe, partial / "checkpoint.pt")
        for n, (own, rows) in enumerate(learnt.tensors()):
            save_file(half(own), partial / f"W_enc_{n}.safetensors")
            save_file(half({f"W_dec_{n}": rows}), partial / f"W_dec_{n}.safetensors")
        (partial / "checkpoint.pt").unlink(missing_ok=True)
    else:
        for layer in range(n_layers):
            path = partial / f"layer_{layer}.safetensors"
            if not path.exists():
                save_file(half(one_layer(store, layer, recipe)), path)
    kind = "cross_layer_transcoder" if cross else "transcoder_set"
    (partial / "config.yaml").write_text(
        f"model_name: zoo:{MODEL}\nmodel_kind: {kind}\nfeature_input_hook: {READ}\nfeature_output_hook: {WRITE}\n"
        "activation: jump_relu\n"
    )
    told = {"k": recipe.k, "seed": recipe.seed, "d_sae": recipe.d_sae, "tokens": recipe.steps * BATCH}
    (partial / "training.json").write_text(json.dumps(told) + "\n")
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=sorted(SETS), help="one of them; default: all")
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens whose activations are kept")
    parser.add_argument("--steps", type=int, default=300, help=f"batches of {BATCH} tokens, a set and layer")
    args = parser.parse_args()
    model = load_model(str(args.work / "models" / MODEL))
    cache = args.work / "tokens" / f"{RECIPES[MODEL].tokenizer}-train-{EVERY}th.npy"
    train_books = [] if cache.exists() else read_books(args.books, held_out=False)
    stream = token_stream(train_books[::EVERY], model.tokenizer, cache)
    rows = sequences(stream, context=CONTEXT, bos=model.bos_id, n_tokens=args.tokens, seed=1)
    n_layers = model.spec.n_layers
    sites = [Site(n, point) for point in (READ, WRITE) for n in range(n_layers)]
    store = harvest(
        model,
        rows,
        sites,
        args.work / "activations" / f"{MODEL}-mlps",
        n_special=1,
        about={"model": f"zoo:{MODEL}"},
    )
    for name, recipe in SETS.items():
        out = args.work / "transcoders" / MODEL / name
        if args.set in (None, name) and not out.exists():
            make(name, store, n_layers, replace(recipe, steps=args.steps), out)


if __name__ == "__main__":
    main()
