"""GT0, an SAE that reads layer-normed inputs and is exact: its codes, its reconstruction and its file are known.

Decoder rows have mean zero over coordinates; a sparse non-negative code a is scaled so that x0 = a W_dec has
standard deviation 1, and the activation is x = s x0 + m with a random scale s and offset m per token. Layer
norm undoes s and m exactly, the encoder (the dual basis) reads a back, so FVU is 0; an instrument that
forgets the normalisation reads codes s times too large and an FVU near 1.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.tables import plain_sae

SITE = Site(1, "hook_resid_post")


@dataclass(frozen=True)
class LayerNormTruth:
    """What was planted."""

    codes: Float[Tensor, "tokens d_sae"]
    """activations of every feature, in the SAE's units"""


@dataclass(frozen=True)
class LayerNormWorld:
    """An SAE, activations it is exact on, and their codes."""

    sae: SAE
    activations: Float[Tensor, "tokens d_in"]
    truth: LayerNormTruth


def layer_norm_world(
    *, d: int = 48, n_features: int = 24, n_tokens: int = 256, l0: float = 3.0, seed: int = 0
) -> LayerNormWorld:
    """The world.

    Args:
        n_features: features, fewer than d.
        l0: mean number of active features per token.
    """
    rng = rng_for(seed, "layer norm world")
    rows = rng.standard_normal((n_features, d))
    rows = unit_rows(rows - rows.mean(axis=1, keepdims=True))
    codes = rng.uniform(0.5, 2.0, (n_tokens, n_features)) * (
        rng.random((n_tokens, n_features)) < l0 / n_features
    )
    codes[np.arange(n_tokens), rng.integers(n_features, size=n_tokens)] += 1.0
    inner = codes @ rows
    spread = inner.std(axis=1, ddof=1, keepdims=True)
    codes, inner = codes / spread, inner / spread
    scale, offset = rng.uniform(2, 20, (n_tokens, 1)), rng.normal(0, 3, (n_tokens, 1))
    sae = plain_sae(rows, site=SITE)
    # The threshold clears rounding: codes of absent features are zero but for 1e-6.
    encoder = torch.tensor(np.linalg.pinv(rows).copy(), dtype=torch.float32)
    sae = replace(sae, W_enc=encoder, normalization="layer_norm", activation="jumprelu")
    sae = replace(sae, threshold=torch.full((n_features,), 1e-3))
    return LayerNormWorld(
        sae=sae,
        activations=torch.tensor(inner * scale + offset, dtype=torch.float32),
        truth=LayerNormTruth(torch.tensor(codes, dtype=torch.float32)),
    )


def write_saelens_folder(folder: Path, sae: SAE) -> Path:
    """The SAE as a SAELens 6 folder (`cfg.json`, `sae_weights.safetensors`); gives the folder back."""
    folder.mkdir(parents=True)
    tensors = {
        name: getattr(sae, name).contiguous() for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": sae.activation,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": sae.normalization,
        "metadata": {"hook_name": str(sae.reads), "model_name": "gpt2", "sae_lens_version": "6.44.0"},
    }
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
