"""Every path of the library that runs on a GPU, checked against the CPU's tables and timed on the card.

    python -m benchmarks.gpu            about five minutes on one card; --quick for small inputs

A line is one path: what was found equal to the CPU's result, the wall time on the card with its work done
(the best of three after a warm-up), and that as a share of what the arithmetic alone would take at the rate of
a bare product measured on the same card in the same precision. Shares are low where a path decides exactly on
the CPU what the card has screened (pairs, neighbours, joint counts): the time is the whole path's. A path that
disagrees stops the run with exit code 1 after all others have been tried.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from polysem.edits import Add
from polysem.features.best import Harvest, HarvestPlan
from polysem.features.encoder import ActiveEncoder
from polysem.geometry import count_joint, mine_pairs, nearest
from polysem.models.gradients import logit_gradients
from polysem.models.hf import HFModel
from polysem.models.sweep import Sweep
from polysem.saes.base import SAE, Activation, Provenance
from polysem.training.fit import TrainingRecipe, finished, measure, start, train
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

SITE = Site.parse("blocks.6.hook_resid_post")
SAME = 2e-4
"""largest difference of float32 results, as a share of the largest entry: kernels add in other orders"""


@dataclass(frozen=True)
class Found:
    """What one path gave."""

    name: str
    check: str
    seconds: float
    flop: float
    """operations of the arithmetic that runs on the card"""
    precision: str
    ok: bool


def timed(run: Callable[[], object], device: str) -> float:
    """Best wall time of three, after one that is not counted."""
    best = float("inf")
    for turn in range(4):
        began = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def product_rates(device: str, n: int) -> dict[str, float]:
    """Operations a second of a square product, by precision."""
    rates = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(n, n, device=device, dtype=dtype)
        rates[name] = 2 * n**3 / timed(lambda a=a: a @ a, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def gap(seen: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest entry."""
    seen, expected = seen.detach().cpu().double(), expected.detach().cpu().double()
    return float((seen - expected).abs().max() / expected.abs().max())


def within(name: str, worst: float, *, allowed: float = SAME) -> tuple[str, bool]:
    return f"{name} differ by {worst:.1e} of the largest (allowed {allowed:g})", worst <= allowed


def directions(n: int, d: int, *, topics: int = 512, seed: int = 0) -> torch.Tensor:
    """Unit rows that share topics, so that some pairs are close."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=rng) / d**0.5
    topic = torch.randn(topics, d, generator=rng) / d**0.5
    share = torch.rand(n, 1, generator=rng) * 0.6
    mixed = (1 - share).sqrt() * rows + share.sqrt() * topic[torch.randint(0, topics, (n,), generator=rng)]
    return torch.nn.functional.normalize(mixed, dim=1)


def geometry(device: str, *, quick: bool) -> Iterator[Found]:
    n, d, d_gloss = (2048, 128, 64) if quick else (16_384, 768, 384)
    rows, glosses = directions(n, d), directions(n, d_gloss, topics=200, seed=1)
    there, glosses_there = rows.to(device), glosses.to(device)
    pairs: dict[str, Any] = {"min_interference": 0.3, "max_similarity": 0.25}
    table = mine_pairs(rows, glosses, **pairs)
    same = mine_pairs(there, glosses_there, **pairs).equals(table)
    yield Found(
        f"pair set, {n:,} x {d} + {d_gloss}-d gloss",
        f"{table.num_rows:,} pairs {'equal bit for bit' if same else 'DIFFER'}",
        timed(lambda: mine_pairs(there, glosses_there, **pairs), device),
        n * n * d,
        "bfloat16",
        same,
    )
    expected, seen = nearest(rows, k=20), nearest(there, k=20)
    same = np.array_equal(expected.index, seen.index) and np.array_equal(expected.cosine, seen.cosine)
    yield Found(
        f"20 nearest of {n:,} x {d}",
        f"indices and cosines {'equal bit for bit' if same else 'DIFFER'}",
        timed(lambda: nearest(there, k=20), device),
        n * n * d,
        "bfloat16",
        same,
    )
    m = n // 2
    joint = {"bins": (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), "similarity_thresholds": (0.4, 0.3, 0.2, 0.15)}
    one = count_joint(rows[:m], glosses[:m], **joint)
    two = count_joint(there[:m], glosses_there[:m], **joint)
    same = all(
        np.array_equal(getattr(one, part), getattr(two, part))
        for part in ("histogram", "interference", "partners")
    )
    yield Found(
        f"joint counts of all pairs of {m:,}",
        f"all {int(one.interference.sum()):,} pairs in {'the same cells' if same else 'OTHER CELLS'}",
        timed(lambda: count_joint(there[:m], glosses_there[:m], **joint), device),
        m * m * (d + d_gloss),
        "float32",
        same,
    )


def moved(model: HFModel, device: str) -> HFModel:
    """A copy of the model on the device."""
    spec = replace(model.spec, device=device)
    return HFModel(
        cast(Any, copy.deepcopy(model.model)).to(device), model.tokenizer, spec=spec, anatomy=model.anatomy
    )


def in_blocks(model: HFModel) -> int:
    """Weights outside the embedding and the unembedding, which are one matrix in some families."""
    tables = {p.data_ptr(): p.numel() for p in (model.W_E, model.W_U)}
    if model.anatomy.scaled_embedding:  # W_E is a scaled copy of the matrix that W_U is
        tables = {model.W_U.data_ptr(): model.W_U.numel()}
    return sum(p.numel() for p in model.model.parameters()) - sum(tables.values())


def models(device: str, *, quick: bool) -> Iterator[Found]:
    layers, width, vocab = (8, 64, 512) if quick else (12, 768, 32_000)
    for family in ("gpt2", "gpt_neox", "llama", "gemma2", "gemma3_text"):
        here = tiny_model(family, n_layers=layers, d_model=width, vocab=vocab)
        yield from _one_model(here, moved(here, device), family, quick=quick)


def _one_model(here: HFModel, there: HFModel, family: str, *, quick: bool) -> Iterator[Found]:
    device, spec = there.spec.device, here.spec
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, spec.d_vocab, (4, 48), generator=rng)
    shape = f"{family}, {spec.n_layers} layers of {spec.d_model}"
    active = in_blocks(here)
    expected = here.capture(tokens, [SITE])[SITE]
    check, ok = within("activations", gap(there.capture(tokens, [SITE])[SITE], expected))
    big = torch.randint(0, spec.d_vocab, (8 if quick else 256, 128), generator=rng)
    behind = (int(SITE.layer or 0) + 1) / spec.n_layers
    yield Found(
        f"capture, {shape}, {big.numel():,} tokens",
        check,
        timed(lambda: there.capture(big, [SITE]), device),
        2 * active * behind * big.numel(),
        "float32",
        ok,
    )
    n = 64 if quick else 512
    norm = float(expected.norm(dim=-1).mean())
    pushes = torch.nn.functional.normalize(torch.randn(n, spec.d_model, generator=rng), dim=1) * norm
    rows = tokens[:1].repeat(n, 1)
    edit = Add(SITE, pushes, torch.ones(rows.shape, dtype=torch.bool))
    few = Add(SITE, pushes[:32], torch.ones(32, rows.shape[1], dtype=torch.bool))
    sweep_here, sweep = Sweep(here), Sweep(there)
    check, ok = within(
        "logits", gap(sweep.logits(rows[:32].to(device), [few]), sweep_here.logits(rows[:32], [few]))
    )

    def swept() -> torch.Tensor:
        # the prompt's own pass is kept from the check above, and its operations are not counted
        return sweep.logits(rows.to(device), [edit])

    yield Found(
        f"sweep of {n} edits, {shape}, 48 tokens, ways {'/'.join(sweep.ways)}",
        f"{check}; ways here {'/'.join(sweep_here.ways)}",
        timed(swept, device),
        2 * active * (1 - behind) * rows.numel(),
        "float32",
        ok,
    )
    contexts = torch.randint(0, spec.d_vocab, (16 if quick else 128, 24), generator=rng).tolist()
    targets = torch.randint(0, spec.d_vocab, (len(contexts),), generator=rng).tolist()
    one, two = (
        logit_gradients(here, contexts[:8], targets[:8]),
        logit_gradients(there, contexts[:8], targets[:8]),
    )
    worst = max(gap(a, b) for a, b in zip(two, one, strict=True))
    check, ok = within("token gradients", worst)
    yield Found(
        f"token gradients of {len(contexts)} contexts, {shape}, 24 tokens",
        check,
        timed(lambda: logit_gradients(there, contexts, targets), device),
        4 * active * len(contexts) * 24,
        "float32",
        ok,
    )
    if family in ("gpt2", "llama"):
        yield _responses(here, there, shape, quick=quick)


def _responses(here: HFModel, there: HFModel, shape: str, *, quick: bool) -> Found:
    from polysem import atlas

    rng = np.random.default_rng(0)
    sets = [rng.choice(here.spec.d_vocab, 10, replace=False).tolist() for _ in range(64 if quick else 1024)]
    prompts = rng.integers(0, here.spec.d_vocab, (2, 24)).tolist()
    expected = atlas.set_responses(here, SITE, prompts, sets[:64])
    seen = atlas.set_responses(there, SITE, prompts, sets[:64])
    check, ok = within("responses", gap(torch.from_numpy(seen), torch.from_numpy(expected)))
    active = in_blocks(here)
    share = 1 - (int(SITE.layer or 0) + 1) / here.spec.n_layers
    return Found(
        f"atlas, responses of {len(sets)} token sets, {shape}, 2 prompts of 24 tokens",
        check,
        timed(lambda: atlas.set_responses(there, SITE, prompts, sets), there.spec.device),
        2 * active * share * len(sets) * 2 * 24,
        "float32",
        ok,
    )


def dictionaries(device: str, *, quick: bool) -> Iterator[Found]:
    d, d_sae, rows, context = (64, 512, 16, 32) if quick else (768, 16_384, 128, 128)
    rng = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=rng), dim=1)
    x = torch.randn(rows * context, d, generator=rng) * 0.3
    for _ in range(20):
        chosen = torch.randint(0, d_sae, (len(x),), generator=rng)
        x += decoder[chosen] * (0.5 + 2 * torch.rand(len(x), 1, generator=rng))
    kinds: dict[Activation, dict[str, Any]] = {
        "relu": {},
        "topk": {"k": 32},
        "jumprelu": {"threshold": torch.full((d_sae,), 0.3)},
    }
    tokens = np.minimum(np.random.default_rng(0).zipf(1.3, (rows, context)), 50_000)
    plan = HarvestPlan(n_contexts=20, window=24, n_tokens=10)
    for kind, rules in kinds.items():
        sae = SAE(
            W_enc=decoder.T.contiguous(), W_dec=decoder, b_enc=torch.full((d_sae,), -1.2), b_dec=torch.zeros(d),
            activation=kind, reads=SITE, writes=SITE, model_id=None, model_revision=None,
            provenance=Provenance("memory", "memory", "benchmark"), **rules,
        )  # fmt: skip

        def harvested(sae: SAE, inputs: torch.Tensor) -> Harvest:
            state = Harvest.empty(sae.d_sae, plan, context=context, first=0)
            encode = ActiveEncoder(sae)
            for at in range(0, rows, 16):
                acts = encode(inputs[at * context : (at + 16) * context])
                state.add(acts, tokens[at : at + 16], first_row=at)
            return state

        there, inputs = sae.to(device), x.to(device)
        one, two = harvested(sae, x), harvested(there, inputs)
        worst = gap(
            torch.from_numpy(np.maximum(two.context_value, 0)),
            torch.from_numpy(np.maximum(one.context_value, 0)),
        )
        total, differ = int(one.n_active.sum()), int(np.abs(one.n_active - two.n_active).sum())
        check, ok = within("best windows", worst)
        yield Found(
            f"harvest, {kind} of {d_sae:,} x {d}, {len(x):,} tokens",
            f"{check}; {differ} of {total:,} firings on the other side of the threshold",
            timed(lambda there=there, inputs=inputs: harvested(there, inputs), device),
            2 * len(x) * d * d_sae,
            "float32",
            ok and differ <= 1e-4 * total,
        )


def training(device: str, *, quick: bool) -> Iterator[Found]:
    d, d_sae, batch, steps = (64, 512, 256, 20) if quick else (576, 4608, 4096, 40)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch * 4, d, generator=rng) @ torch.randn(d, d, generator=rng)
    recipe = TrainingRecipe(d_sae=d_sae, k=16, steps=steps, batch=batch)
    scales = measure(x, x)

    def fit(device: str, steps: int) -> dict[str, torch.Tensor]:
        there = replace(scales, mean=scales.mean.to(device))
        state = start(recipe, scales, d_in=d, autoencoder=True)  # the CPU's draw on both
        state = state if device == "cpu" else start_there(state, device)
        inputs = x.to(device)

        def batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            while True:
                part = inputs[step % 4 * batch : (step % 4 + 1) * batch]
                yield part, part
                step += 1

        train(replace(recipe, steps=steps), there, state, batches, each=lambda *_: None)
        return finished(recipe, there, state)

    def start_there(state, device: str):  # type: ignore[no-untyped-def]
        fresh = start(recipe, replace(scales, mean=scales.mean.to(device)), d_in=d, autoencoder=True)
        with torch.no_grad():
            for name, tensor in fresh.weights.named().items():
                tensor.copy_(state.weights.named()[name])
        return fresh

    # One step: what is active is settled by a bfloat16 product here and a float32 one there, so that paths
    # part with every further step. After it the weights differ by what rounding did to that choice.
    one, two = fit("cpu", 1), fit(device, 1)
    unseen = x[:batch]

    def error(w: dict[str, torch.Tensor]) -> float:
        w = {name: tensor.cpu() for name, tensor in w.items()}
        pre = unseen @ w["W_enc"] + w["b_enc"]
        values, chosen = pre.topk(recipe.k, dim=1)
        acts = torch.zeros_like(pre).scatter(1, chosen, values.relu())
        return float((unseen - acts @ w["W_dec"] - w["b_dec"]).pow(2).sum())

    worst = abs(error(two) / error(one) - 1)
    check, ok = within("squared errors after a step", worst, allowed=1e-2)
    yield Found(
        f"training, {steps} steps of {batch} tokens, TopK of {d_sae:,} x {d}",
        check,
        timed(lambda: fit(device, steps), device),
        5 * 2 * batch * d * d_sae * steps,
        "float32",
        ok,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small inputs; no figure says anything")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; `--device cpu --quick` tries the script itself")
    name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    rates = product_rates(args.device, 512 if args.quick else 8192)
    print(
        f"{name}, torch {torch.__version__}; bare products: "
        + ", ".join(f"{k} {v / 1e12:.1f} TFLOP/s" for k, v in rates.items())
    )
    failed = []
    for group in (geometry, models, dictionaries, training):
        try:
            for found in group(args.device, quick=args.quick):
                share = found.flop / rates[found.precision] / found.seconds
                verdict = "ok  " if found.ok else "FAIL"
                print(
                    f"{verdict} {found.name}: {found.seconds * 1e3:,.1f} ms, {share:.1%} of {found.precision}; {found.check}",
                    flush=True,
                )
                if not found.ok:
                    failed.append(found.name)
        except Exception as error:  # one path must not hide the others
            import traceback

            traceback.print_exc()
            print(
                f"FAIL {group.__name__}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                flush=True,
            )
            failed.append(group.__name__)
    print(f"{len(failed)} failed" + (f": {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
