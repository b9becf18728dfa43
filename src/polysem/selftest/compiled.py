"""GT4: the compiled transformer, whole and squeezed; and the traps of paths, on its known circuit."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from polysem.config import PairsConfig
from polysem.edits import Add
from polysem.geometry.unit import unit_rows
from polysem.linear.decompose import Decomposition, decompose, mean_direction, split_push
from polysem.linear.response import membership
from polysem.pairs import map_pairs
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, at_most, between, exactly, reported
from polysem.selftest.runner import RunSize
from polysem.worlds import compiled
from polysem.worlds.tables import FeatureRow, feature_table

POS = 6


def whole(size: RunSize) -> Iterator[Measured]:
    """No compression: no interference, and only what the circuit connects moves."""
    world = compiled.compiled_world(seed=size.seed)
    D = len(world.truth.gram)
    yield exactly("pairs in the map", len(_mined(world)), 0, unit="pairs", note=f"{D} features")
    tokens = _tokens(world, 64 if not size.full else 512, size.seed)
    held = world.truth.activations(tokens.numpy())
    seen = world.model.capture(tokens, [compiled.FINAL])[compiled.FINAL].numpy()
    yield at_most("residual against the circuit's rule", np.abs(seen - held).max(), 1e-12)
    moved = _moved(world, _fixed_prompts(world))
    apart = ~_connected(world)
    yield at_most(
        "logit shift of unconnected pairs",
        np.abs(moved[apart]).max(),
        0.0,
        unit="logits",
        note=f"{apart.sum()} pairs",
    )
    yield at_least("logit shift of connected pairs", np.abs(moved[~apart]).min(), 0.5, unit="logits")


def squeezed(size: RunSize) -> Iterator[Measured]:
    """Half the dimensions: the planted Gram matrix is recovered, and predicts who moves whom."""
    world = compiled.compiled_world(compression=0.5, seed=size.seed)
    truth = world.truth
    upper = np.triu_indices(len(truth.gram), 1)
    tokens = _tokens(world, size.of(400, 2000), size.seed)
    held = world.truth.activations(tokens.numpy()).reshape(-1, len(truth.gram))
    seen = world.model.capture(tokens, [compiled.FINAL])[compiled.FINAL].numpy().reshape(len(held), -1)
    found = unit_rows(np.linalg.lstsq(held, seen, rcond=None)[0])
    yield at_least(
        "correlation of recovered and planted Gram",
        np.corrcoef((found @ found.T)[upper], truth.gram[upper])[0, 1],
        0.95,
    )
    mined = _mined(world)
    expected = {(int(i), int(j)) for i, j in np.argwhere(np.triu(np.abs(truth.gram) >= 0.2, 1))}
    yield exactly(
        "pairs that the map has wrong", len(mined ^ expected), 0, unit="pairs", note=f"of {len(expected)}"
    )
    # A token is moved directly by what reads its row: the closed form is W_U R, whoever is connected.
    moved = _moved(world, _fixed_prompts(world), frozen=True)
    direct = (world.model.W_U.numpy() @ truth.R).T
    yield at_most("direct logit shift against W_U R", np.abs(moved - direct).max(), 1e-9, unit="logits")
    apart = ~_connected(world)
    yield reported(
        "rms direct shift of unconnected pairs",
        np.sqrt((direct[apart] ** 2).mean()),
        unit="logits",
        note="0 without compression",
    )


def paths(size: RunSize) -> Iterator[Measured]:
    """Direct and indirect effects of a push agree with the circuit: in log-odds, as decompositions give them, where
    one of the two kinds of path is cut; in logits, by freezing neurons, where both are there (log-odds of one token
    also answer to what reaches the others)."""
    made, seed = compiled.compiled_world, size.seed
    for name, world, indirect in (
        ("direct-only", made(seed=seed, bigram_gain=0.0), False),
        ("indirect-only", made(seed=seed, successor_gain=0.0), True),
    ):
        shares = []
        for b, a, t in world.truth.bigrams.tolist():
            target = t if indirect else int(world.truth.successors[a - 1])
            split = _split(world, torch.tensor([0, b, 0]), world.truth.current(a), target)
            shares.append(float(split.direct / split.total))
        note = f"{len(shares)} targets"
        if indirect:
            yield at_most(f"largest |DE / TE|, {name} world", np.abs(shares).max(), 0.02, note=note)
        else:
            yield between(f"least DE / TE, {name} world", min(shares), 0.98, 1.02, note=note)
            yield between(f"largest DE / TE, {name} world", max(shares), 0.98, 1.02, note=note)
    yield from _by_freezing(compiled.compiled_world(seed=size.seed))


def _by_freezing(world: compiled.CompiledWorld) -> Iterator[Measured]:
    """Logits of the tokens that a push reaches directly, and through one neuron."""
    truth = world.truth
    written = {(a, t) for _, a, t in truth.bigrams.tolist()}
    off, foreign = [], []
    for k, (b, a, t) in enumerate(truth.bigrams.tolist()):
        token = int(truth.successors[a - 1])
        if token == t or (a, token) in written:
            continue
        # With the previous token in place, pushing "current a" fires neuron k and nothing else.
        tokens = torch.tensor([[0, b, 0]])
        for target, expected in ((t, 0.0), (token, 1.0)):
            total = _effect(world, tokens, truth.current(a), target)
            direct = _effect(world, tokens, truth.current(a), target, freeze=range(len(truth.bigrams)))
            off.append(abs(direct / total - expected))
        others = [n for n in range(len(truth.bigrams)) if n != k]
        total, without = (_effect(world, tokens, truth.current(a), t, freeze=held) for held in ((), others))
        foreign.append(abs(total - without) / abs(total))
    note = f"{len(foreign)} bigrams"
    yield at_most("direct share of a logit by freezing neurons, off 0 or 1", max(off), 1e-9, note=note)
    yield at_most("effect through neurons outside the circuit", max(foreign), 0.01, unit="of the total")


def _mined(world: compiled.CompiledWorld) -> set[tuple[int, int]]:
    """Pairs in the map of the world's features, all glosses unlike."""
    n = len(world.truth.gram)
    rows = [FeatureRow([1 + k % world.truth.n_tokens], gloss=f"axis {k}") for k in range(n)]
    table = feature_table("compiled", rows, site=compiled.MIDDLE, W_dec=world.truth.R.T, embeddings=np.eye(n))
    found = map_pairs(world.sae, table, config=PairsConfig(), label="compiled").pairs
    return set(zip(found["i"].to_pylist(), found["j"].to_pylist(), strict=True))


def _tokens(world: compiled.CompiledWorld, n: int, seed: int) -> torch.Tensor:
    """Random rows; each begins with one of the bigrams, so that none is unseen."""
    rows = rng_for(seed, "compiled", "tokens").integers(0, world.truth.n_tokens + 1, size=(n, POS))
    rows[:, :2] = np.resize(world.truth.bigrams[:, :2], (n, 2))
    return torch.as_tensor(rows)


def _fixed_prompts(world: compiled.CompiledWorld) -> torch.Tensor:
    """One prompt per bigram: its first token, then BOS, so that one more token fires its neuron."""
    return torch.tensor([[0, b, 0] for b, _, _ in world.truth.bigrams.tolist()])


def _moved(world: compiled.CompiledWorld, prompts: torch.Tensor, *, frozen: bool = False) -> np.ndarray:
    """[feature, token]: largest shift of a token's logit, over prompts, when a feature is pushed by 1; with all
    neurons held at their values if `frozen`."""
    D = world.truth.R.T
    neurons = range(len(world.truth.bigrams)) if frozen else ()
    shifts = []
    for prompt in prompts[: 1 if frozen else None]:
        tokens = prompt.repeat(len(D), 1)
        shifts.append(_shift(world, tokens, torch.as_tensor(D), neurons).numpy())
    stacked = np.stack(shifts)
    return np.take_along_axis(stacked, np.abs(stacked).argmax(axis=0)[None], axis=0)[0]


def _shift(
    world: compiled.CompiledWorld, tokens: torch.Tensor, vectors: torch.Tensor, freeze: Iterable[int]
) -> torch.Tensor:
    """Logit shifts at the last position when vectors are added at the end of block 0, neurons in `freeze` held."""
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, -1] = True
    edits = [Add(compiled.MIDDLE, vectors, mask)]
    held = list(freeze)
    if held:
        clean, edited = (
            world.model.capture(tokens, [compiled.NEURONS], e)[compiled.NEURONS][:, -1] for e in ([], edits)
        )
        back = torch.zeros_like(clean)
        back[:, held] = (clean - edited)[:, held]
        edits.append(Add(compiled.NEURONS, back, mask))
    return (world.model.logits(tokens, edits) - world.model.logits(tokens))[:, -1]


def _effect(
    world: compiled.CompiledWorld,
    tokens: torch.Tensor,
    feature: int,
    target: int,
    *,
    freeze: Iterable[int] = (),
) -> float:
    vector = torch.as_tensor(world.truth.R[:, feature])[None]
    return float(_shift(world, tokens, vector, freeze)[0, target])


def _split(world: compiled.CompiledWorld, tokens: torch.Tensor, feature: int, target: int) -> Decomposition:
    """Decomposition of the effect of a feature, pushed from 0 to 1 at the last position, on one token."""
    push = torch.as_tensor(world.truth.R[:, [feature]].T)
    own = torch.as_tensor(world.truth.R[:, [world.truth.current(target)]].T)
    return decompose(
        world.model,
        tokens,
        site=compiled.MIDDLE,
        pushed=torch.arange(len(tokens)) == len(tokens) - 1,
        parts=split_push(push, own, mean_direction(world.sae.W_dec)),
        inside=membership([[target]], world.model.spec.d_vocab),
    )


def _connected(world: compiled.CompiledWorld) -> np.ndarray:
    """[feature, token]: whether the circuit leads from the feature to the token."""
    truth = world.truth
    result = np.zeros((len(truth.gram), truth.n_tokens + 1), dtype=bool)
    for token in range(1, truth.n_tokens + 1):
        result[truth.current(token), truth.successors[token - 1]] = True
    for k, (b, a, t) in enumerate(truth.bigrams.tolist()):
        result[[truth.current(a), truth.previous(b), truth.bigram(k)], t] = True
    return result
