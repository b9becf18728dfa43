"""GT5: pairs of a dictionary that is given, and of dictionaries that were learnt."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem.config import PairsConfig
from polysem.geometry.unit import unit_rows
from polysem.pairs import map_pairs
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near, reported
from polysem.selftest.runner import RunSize
from polysem.worlds import codes, training
from polysem.worlds.tables import FeatureRow, feature_table, plain_sae

CURVE = {
    "relu_l1": (0.3, 0.15, 0.05),
    "gated": (0.6, 0.3, 0.1),
    "jumprelu": (0.1, 0.03, 0.01),
    "topk_auxk": (4, 8, 16),
    "batchtopk": (4, 8, 16),
    "matryoshka": (4, 8, 16),
    "group_bias": (0,),
}
"""architecture -> penalties or numbers of active latents: from near the true sparsity to far too dense"""
CUT = 0.4
MCC, PRECISION = "MCC", "pair precision"
"""names of the two lines of a point of the curve"""


def given(size: RunSize) -> Iterator[Measured]:
    """The true dictionary, shuffled and scaled, as the SAE: the map must find the planted pairs."""
    world = codes.codes_world(
        n_features=size.of(256, 2048), d=size.of(128, 256), n_pairs=size.of(40, 200), seed=size.seed
    )
    rng = rng_for(size.seed, "codes given")
    n = len(world.truth.directions)
    order = rng.permutation(n)
    rows = world.truth.directions[order] * rng.uniform(0.5, 2.0, (n, 1))
    sae = plain_sae(rows, site=codes.SITE)
    features = [FeatureRow([k], gloss=f"latent {k}") for k in range(n)]
    glosses = unit_rows(rng.standard_normal((n, 512)))
    table = feature_table("codes", features, site=codes.SITE, W_dec=rows, embeddings=glosses)
    found = map_pairs(sae, table, config=PairsConfig(min_interference=CUT), label="codes").pairs
    seen = {
        tuple(sorted((int(order[i]), int(order[j]))))
        for i, j in zip(found["i"].to_pylist(), found["j"].to_pylist(), strict=True)
    }
    planted = set(world.truth.pairs)
    yield at_least(
        "recall of planted pairs", len(seen & planted) / len(planted), 0.95, note=f"cosine 0.45, cut {CUT}"
    )
    yield at_least("precision of planted pairs", len(seen & planted) / max(1, len(seen)), 0.95)
    whole = codes.recovery(world.truth, rows, cut=CUT)
    yield near("MCC of the true dictionary", whole.mcc, 1.0, 1e-9)
    half = rows.copy()
    half[::2] = unit_rows(rng.standard_normal(half[::2].shape))
    yield near(
        "features matched, half the rows at random", codes.recovery(world.truth, half).matched, 0.5, 0.02
    )


def group_bias(size: RunSize) -> Iterator[Measured]:
    """Group Bias Adaptation: sparsity by biases alone, and features found."""
    world = codes.codes_world(n_features=32, d=24, n_pairs=6, l0=2.0, seed=size.seed)
    made = training.train_sae(
        world, "group_bias", d_sae=64, steps=size.of(600, 4000), sparsity=0, seed=size.seed
    )
    x, true = _held_out(world, size.seed)
    found = codes.recovery(world.truth, _decoder(made))
    l0 = float((made.encode(x) > 0).float().sum(-1).mean())
    chance = codes.recovery(world.truth, rng_for(size.seed, "chance").standard_normal((64, 24))).mcc
    yield at_least(
        "MCC over that of random rows", found.mcc - chance, 0.2, note=f"{found.mcc:.3f} against {chance:.3f}"
    )
    targets = 64 / 8 * 0.4  # 8 groups whose targets sum to 0.4
    yield at_most(
        "active latents",
        l0,
        1.5 * targets,
        unit="per activation",
        note=f"truth {float((true > 0).float().sum(-1).mean()):.2f}",
    )
    yield at_most("dead latents", training.dead(made, x), 0.1, unit="share")


def sae_lens_codes(size: RunSize) -> Iterator[Measured]:
    """Codes that `sae_lens.synthetic` draws are those that the truth says."""
    world = training.sparse_codes(n_features=128, d=64, n_pairs=24, seed=size.seed)
    n = 50_000
    x, drawn = world.sample(n, torch.Generator().manual_seed(size.seed))
    rest = x - drawn @ torch.as_tensor(world.truth.directions, dtype=torch.float32)
    yield near("noise around codes times directions", float(rest.std()), world.noise, 1e-4, unit="activation")
    chance = world.truth.chance
    z = ((drawn > 0).double().mean(dim=0).numpy() - chance) / np.sqrt(chance * (1 - chance) / n)
    yield at_most("chi-square of firing rates per feature", (z**2).mean(), 1.5, note=type(world).__name__)


def learnt(size: RunSize) -> Iterator[Measured]:
    """The curve: how the precision of pairs falls with the MCC of the dictionary; nothing to pass."""
    world = training.sparse_codes(n_features=128, d=64, n_pairs=24, seed=size.seed)
    points = []
    for architecture, settings in CURVE.items():
        for sparsity in settings:
            saes = [_train(world, architecture, sparsity, seed, size) for seed in (0, 1)]
            found = [codes.recovery(world.truth, _decoder(sae), cut=CUT) for sae in saes]
            again = _replication(*(_decoder(sae) for sae in saes))
            mcc, precision = (np.array([getattr(f, name) for f in found]) for name in ("mcc", "precision"))
            recall = np.mean([f.recall for f in found])
            note = f"recall {recall:.3f}, found again with another seed {again:.3f}"
            for name, values, said in ((MCC, mcc, ""), (PRECISION, precision, note)):
                error = float(values.std(ddof=1) / np.sqrt(2))
                yield reported(f"{name}, {architecture} {sparsity:g}", values.mean(), error=error, note=said)
            points.append((mcc.mean(), precision.mean(), again))
    mcc, precision, again = np.array(points).T
    yield reported("rank correlation of MCC and pair precision", _rank_correlation(mcc, precision))
    yield at_least(
        "rank correlation of seed replication and true-pair rate",
        _rank_correlation(again, precision),
        0.8,
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b, nan_policy="omit").statistic)


def remedies(size: RunSize) -> Iterator[Measured]:
    """Dead latents of a top-k SAE with four times too many: tied start, AuxK, both, none; and Group Bias Adaptation."""
    world = training.sparse_codes(n_features=128, d=64, n_pairs=24, seed=size.seed)
    x, _ = _held_out(world, size.seed)
    for name, tied, auxiliary in (
        ("no remedy", False, 0.0),
        ("tied start", True, 0.0),
        ("AuxK", False, 1.0),
        ("tied start and AuxK", True, 1.0),
    ):
        made = training.train_sae(
            world,
            "topk_auxk",
            d_sae=512,
            steps=_steps(size),
            sparsity=4,
            tied=tied,
            auxiliary=auxiliary,
            seed=size.seed,
        )
        yield _remedy(name, world, made, x)
    made = training.train_sae(world, "group_bias", d_sae=512, steps=_steps(size), sparsity=0, seed=size.seed)
    yield _remedy("Group Bias Adaptation", world, made, x)


def _remedy(name: str, world: codes.CodesWorld, made: SAE, x: torch.Tensor) -> Measured:
    mcc = codes.recovery(world.truth, _decoder(made)).mcc
    return reported(f"dead latents, {name}", training.dead(made, x), unit="share", note=f"MCC {mcc:.3f}")


def _train(
    world: codes.CodesWorld, architecture: str, sparsity: float | int, seed: int, size: RunSize
) -> SAE:
    return training.train_sae(
        world, architecture, d_sae=192, steps=_steps(size), sparsity=sparsity, seed=1000 * size.seed + seed
    )


def _steps(size: RunSize) -> int:
    return size.of(300, 2000)


def _held_out(world: codes.CodesWorld, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return world.sample(8192, torch.Generator().manual_seed(10_000 + seed))


def _decoder(sae: SAE) -> np.ndarray:
    return sae.W_dec.double().numpy()


def _replication(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the first dictionary's close pairs that the second has too, latents matched by cosine: what a user
    without the truth can see."""
    alive = np.linalg.norm(one, axis=1) > 1e-8
    first = unit_rows(one[alive])
    seen = codes.CodesTruth(first, np.ones(len(first)), np.full(len(first), -1), (), CUT)
    if not seen.close(CUT):
        return float("nan")
    return codes.recovery(seen, other, cut=CUT).recall


def sae_lens_formats(size: RunSize) -> Iterator[Measured]:
    """One short training run of sae-lens per architecture, read back by polysem and by sae-lens: the same codes."""
    world = codes.codes_world(n_features=32, d=16, n_pairs=4, seed=size.seed)
    x, _ = _held_out(world, size.seed)
    for architecture in training.ARCHITECTURES[:-1]:
        sparsity = CURVE[architecture][0]
        codes_off, rows_off = training.agreement(
            world, architecture, x[:512], sparsity=sparsity, seed=size.seed
        )
        yield at_most(f"codes of {architecture} against sae-lens", codes_off, 1e-5, unit="relative error")
        yield exactly(f"decoder of {architecture} against sae-lens", rows_off, 0.0, unit="weight")
