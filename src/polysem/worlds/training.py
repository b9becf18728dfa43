"""GT5, SAEs learnt on sparse codes with sae-lens's own trainer, one configuration per architecture, as it writes them
and as polysem reads them; and sparse codes from its generator `sae_lens.synthetic` (SynthSAEBench, arXiv 2602.14687).

Needs the package sae-lens, which is no dependency of polysem.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import UnknownReferenceError
from polysem.saes import load_sae
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.worlds.codes import SITE, CodesTruth, CodesWorld, codes_world
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
        steps: batches of BATCH activations.
        sparsity: mean number of active latents (top-k kinds), or the coefficient of the penalty; not used by
            group_bias.
        tied: start with the encoder as the decoder's transpose (sae-lens does); otherwise the encoder starts at
            directions of its own.
        auxiliary: coefficient of the AuxK loss, of the kinds that have one.

    Raises:
        UnknownReferenceError: if sae-lens is not installed, or the architecture is unknown.
    """
    if architecture == "group_bias":
        return train_group_bias(batches(world, seed=seed), d_sae=d_sae, steps=steps, site=SITE, seed=seed)
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


def train_with_sae_lens(
    architecture: str,
    data: Iterator[Tensor],
    *,
    folder: Path,
    d_in: int,
    d_sae: int,
    steps: int,
    sparsity: float | int,
    tied: bool,
    auxiliary: float,
) -> Path:
    """Train, and save an inference SAE in sae-lens's own layout; gives its folder."""
    lens = sae_lens_package()
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    metadata = SAEMetadata(model_name="world", hook_name="blocks.0.hook_resid_post", prepend_bos=False)
    common = {"d_in": d_in, "d_sae": d_sae, "metadata": metadata}
    sae = _training_sae(lens, architecture, common, sparsity=sparsity, steps=steps, auxiliary=auxiliary)
    if not tied:
        with torch.no_grad():
            fresh = torch.randn(sae.W_enc.T.shape)
            sae.W_enc.copy_((fresh / fresh.norm(dim=-1, keepdim=True) * sae.W_dec.norm(dim=-1).mean()).T)
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=RATE,
        lr_end=RATE / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 5,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=max(50, steps // 20),
        feature_sampling_window=max(100, steps // 4),
        logger=lens.LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
    )
    with redirect_stderr(io.StringIO()):  # its progress bar, which nothing switches off
        SAETrainer(cfg=config, sae=sae, data_provider=data, save_checkpoint_fn=None).fit()
    folder.mkdir(parents=True)
    sae.save_inference_model(str(folder))
    return folder


def _training_sae(
    lens: Any,
    architecture: str,
    common: dict[str, Any],
    *,
    sparsity: float | int,
    steps: int,
    auxiliary: float,
) -> Any:
    warm = steps // 10
    widths = [common["d_sae"] // 8, common["d_sae"] // 4, common["d_sae"] // 2, common["d_sae"]]
    top = common | {"k": sparsity, "aux_loss_coefficient": auxiliary}
    settings = {
        "relu_l1": ("Standard", common | {"l1_coefficient": sparsity, "l1_warm_up_steps": warm}),
        "gated": ("Gated", common | {"l1_coefficient": sparsity, "l1_warm_up_steps": warm}),
        "jumprelu": ("JumpReLU", common | {"l0_coefficient": sparsity, "l0_warm_up_steps": warm}),
        "topk_auxk": ("TopK", top | {"k": round(sparsity)}),
        "batchtopk": ("BatchTopK", top),
        "matryoshka": ("MatryoshkaBatchTopK", top | {"matryoshka_widths": widths}),
    }
    if architecture not in settings:
        raise UnknownReferenceError(
            f"no architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}"
        )
    kind, fields = settings[architecture]
    return getattr(lens, f"{kind}TrainingSAE")(getattr(lens, f"{kind}TrainingSAEConfig")(**fields))


def agreement(
    world: CodesWorld, architecture: str, x: Tensor, *, sparsity: float | int, seed: int, steps: int = 30
) -> tuple[float, float]:
    """(largest relative difference of codes, largest difference of decoder rows) between what polysem and what
    sae-lens read from one saved SAE."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = train_with_sae_lens(
            architecture,
            batches(world, seed=seed),
            folder=Path(folder) / "sae",
            d_in=x.shape[1],
            d_sae=48,
            steps=steps,
            sparsity=sparsity,
            tied=True,
            auxiliary=1.0,
        )
        theirs = sae_lens_package().SAE.load_from_disk(str(path), device="cpu")
        ours = load_sae(str(path))
    with torch.no_grad():
        expected = theirs.encode(x)
        off = float((ours.encode(x) - expected).abs().max() / expected.abs().max())
        return off, float((ours.W_dec - theirs.W_dec).abs().max())


@dataclass(frozen=True)
class LensCodesWorld(CodesWorld):
    """Sparse codes as `sae_lens.synthetic` draws them, on a dictionary with planted pairs."""

    generator: Any = field(repr=False)
    """its SyntheticModel"""

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n features"]]:
        """Activations and their codes. sae-lens draws from torch's global generator, which is put back after."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            x, codes = self.generator.sample_with_features(n)
        return x + self.noise * torch.randn(x.shape, generator=generator), codes


def lens_codes_world(
    *,
    n_features: int = 128,
    d: int = 64,
    n_pairs: int = 24,
    cosine: float = 0.45,
    noise: float = 0.01,
    max_prob: float = 0.15,
    min_prob: float = 0.005,
    seed: int = 0,
) -> LensCodesWorld:
    """A dictionary with planted pairs, its codes by sae-lens: firing chances by its Zipf law, magnitudes N(1, 0.3^2)
    cut at 0.

    Args:
        n_features, d, n_pairs, cosine, noise: as of `codes_world`.
        max_prob, min_prob: firing chances of the most and the least frequent feature.
        seed: of the dictionary and of which feature has which chance.

    Raises:
        UnknownReferenceError: if sae-lens is not installed.
    """
    sae_lens_package()
    from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig, ZipfianFiringProbabilityConfig

    own = codes_world(n_features=n_features, d=d, n_pairs=n_pairs, cosine=cosine, seed=seed).truth
    zipf = ZipfianFiringProbabilityConfig(exponent=0.7, max_prob=max_prob, min_prob=min_prob)
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=n_features,
            hidden_dim=d,
            firing_probability=zipf,
            std_firing_magnitudes=0.3,
            mean_firing_magnitudes=1.0,
            bias=False,
            seed=seed,
        )
    )
    order = torch.as_tensor(rng_for(seed, "firing chances").permutation(n_features))
    source = model.activation_generator
    source.firing_probabilities = source.firing_probabilities[order]
    with torch.no_grad():
        model.feature_dict.feature_vectors.copy_(torch.as_tensor(own.directions))
    chance = source.firing_probabilities.double().numpy()
    return LensCodesWorld(CodesTruth(own.directions, chance, own.parent, own.pairs, own.cosine), noise, model)
