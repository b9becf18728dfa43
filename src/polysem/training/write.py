"""A finished dictionary on disk: a folder in SAELens's layout, with a model card beside the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysem.store.io import replacing
from polysem.types import Site

CARD = "card.json"


def config(
    tensors: Mapping[str, Tensor], *, reads: Site, writes: Site, k: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """`cfg.json` of SAELens 6 for a dictionary that reads the model's own activations.

    Args:
        tensors: the weights; `threshold` makes it a JumpReLU dictionary, `W_skip` a skip transcoder.
        reads: the site whose activations are encoded.
        writes: the site that is reconstructed.
        k: active latents of TopK.
        about: fields of `metadata`: model_name, context_size, dataset_path, training_seed, ...
    """
    d_in, d_sae = tensors["W_enc"].shape
    jump, other = "threshold" in tensors, reads != writes
    names = {
        (False, False): "topk",
        (True, False): "jumprelu",
        (True, True): "jumprelu_skip_transcoder" if "W_skip" in tensors else "jumprelu_transcoder",
    }
    if (jump, other) not in names:
        raise ValueError("SAELens has no TopK transcoder; train it with --select batchtopk")
    found: dict[str, Any] = {
        "architecture": names[jump, other],
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": str(tensors["W_enc"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": str(reads), "prepend_bos": True, **about},
    }
    if not jump:
        found |= {"k": k, "rescale_acts_by_decoder_norm": False}
    if other:
        found["d_out"] = tensors["W_dec"].shape[1]
        found["metadata"]["hook_name_out"] = str(writes)
    return found


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    reads: Site,
    writes: Site,
    k: int,
    about: Mapping[str, Any],
    card: Mapping[str, Any],
) -> None:
    """Write cfg.json, sae_weights.safetensors (float16) and card.json.

    Raises:
        StoreError: if they cannot be written.
    """
    from safetensors.torch import save

    half = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    made = config(half, reads=reads, writes=writes, k=k, about=about)
    with replacing(folder / "sae_weights.safetensors") as stream:
        stream.write(save(half))
    for name, value in (("cfg.json", made), (CARD, dict(card))):
        with replacing(folder / name) as stream:
            stream.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
