"""GT5, SAEs learnt on sparse codes with sae-lens, one per architecture, as it writes them and as polysem reads them.

Needs the package sae-lens, which is no dependency of polysem.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysem.errors import UnknownReferenceError
from polysem.saes import load_sae
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.worlds.codes import SITE, CodesWorld, codes_world
from polysem.worlds.group_bias import train_group_bias

BATCH = 1024
RATE = 3e-3
ARCHITECTURES = ("relu_l1", "gated", "jumprelu", "topk_auxk", "batchtopk", "matryoshka", "group_bias")


def batches(world: CodesWorld, *, seed: int, batch: int = BATCH) -> Iterator[Tensor]:
    """Activations of the world without end."""
    generator = torch.Generator().manual_seed(int(rng_for(seed, "codes").integers(2**31)))
    while True:
        yield world.sample(batch, generator)[0]


def train_sae(
    world: CodesWorld,
    architecture: str,
    *,
    d_sae: int,
    steps: int,
    sparsity: float | int,
    tied: bool = True,
    auxiliary: float = 1.0,
    seed: int = 0,
) -> SAE:
    """An SAE of one architecture, learnt on the world.

    Args:
        world: the source of activations.
        architecture: one of ARCHITECTURES.
        d_sae: latents.
        steps: batches of BATCH activations.
        sparsity: mean number of active latents (top-k kinds), or the coefficient of the penalty; not used by
            group_bias.
        tied: start with the encoder as the decoder's transpose (sae-lens does); otherwise the encoder starts at
            directions of its own.
        auxiliary: coefficient of the AuxK loss, of the kinds that have one.
        seed: of initialisation and data.

    Raises:
        UnknownReferenceError: if sae-lens is not installed, or the architecture is unknown.
    """
    if architecture == "group_bias":
        return train_group_bias(batches(world, seed=seed), d_sae=d_sae, steps=steps, site=SITE, seed=seed)
    from polysem.worlds.lens import train_with_sae_lens

    torch.manual_seed(int(rng_for(seed, "sae", architecture).integers(2**31)))
    with tempfile.TemporaryDirectory() as folder:
        path = train_with_sae_lens(
            architecture,
            batches(world, seed=seed),
            folder=Path(folder) / "sae",
            d_in=world.truth.directions.shape[1],
            d_sae=d_sae,
            steps=steps,
            sparsity=sparsity,
            tied=tied,
            auxiliary=auxiliary,
        )
        return load_sae(str(path))


def dead(sae: SAE, x: Tensor) -> float:
    """Share of latents that no activation of `x` switches on."""
    return float((sae.encode(x).amax(dim=0) == 0).double().mean())


def sparse_codes(*, n_features: int, d: int, n_pairs: int, seed: int) -> CodesWorld:
    """Sparse codes from `sae_lens.synthetic` where sae-lens is installed, from polysem's own generator otherwise."""
    try:
        sae_lens_package()
    except UnknownReferenceError:
        return codes_world(n_features=n_features, d=d, n_pairs=n_pairs, seed=seed)
    from polysem.worlds.lens import lens_codes_world

    return lens_codes_world(n_features=n_features, d=d, n_pairs=n_pairs, seed=seed)


def sae_lens_package() -> Any:
    """The package sae-lens.

    Raises:
        UnknownReferenceError: if it is not installed.
    """
    try:
        import sae_lens
    except ImportError as error:
        raise UnknownReferenceError(
            "training SAEs on synthetic codes needs the package sae-lens, which is not installed",
            hint='pip install "sae-lens>=6.44,<7"',
        ) from error
    return sae_lens
