"""What any SAE loader must satisfy, for authors of further dialects.

from polysem.testing.conformance_sae import check_sae_loader
check_sae_loader(my_loader, Path("folder-of-one-sae"))
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from polysem.errors import PolysemError
from polysem.saes.base import SAE
from polysem.store.io import sha256

TOLERANCE = 1e-4
"""float32, relative to the size of the reconstruction"""


def check_sae_loader(loader: Callable[[Path], SAE], path: Path) -> None:
    """Check a loader on one SAE of its dialect.

    Args:
        loader: gives the SAE at a path.
        path: folder or file of a small SAE that the loader reads. It is copied, never changed.

    Raises:
        AssertionError: saying which rule does not hold.
    """
    sae = loader(path)
    _check_record(sae)
    _check_codec(sae)
    _check_same(sae, loader(path))
    _check_provenance(sae, path)
    _check_damage(loader, path)


def _check_record(sae: SAE) -> None:
    d_sae, d_in = sae.W_dec.shape
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    if sae.threshold is not None:
        shapes["threshold"] = (d_sae,)
    for name, shape in shapes.items():
        tensor = getattr(sae, name)
        assert tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}, expected {shape}"
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}, expected float32"
        assert tensor.is_contiguous(), f"{name} is not contiguous"
        assert not tensor.requires_grad, f"{name} requires a gradient"
        assert torch.isfinite(tensor).all(), f"{name} is not finite"
    needs = {"jumprelu": "threshold", "topk": "k", "groupmax": "k", "gated": "gate"}.get(sae.activation)
    assert needs is None or getattr(sae, needs) is not None, f"{sae.activation} needs {needs}"


def _check_codec(sae: SAE) -> None:
    x = torch.randn(6, sae.d_in, generator=torch.Generator().manual_seed(0))
    acts = sae.encode(x)
    assert acts.shape == (6, sae.d_sae), f"encode gives {tuple(acts.shape)}"
    assert (acts >= 0).all(), "activations are negative"
    assert sae.decode(acts, like=x).shape == x.shape, "decode does not give the shape of the input"
    if sae.activation in ("topk", "groupmax") and sae.k is not None:
        assert int((acts > 0).sum(dim=-1).max()) <= sae.k, "more than k features are active"
    nested = sae.encode(x.reshape(2, 3, -1))
    assert torch.allclose(nested.reshape(6, -1), acts, atol=TOLERANCE), (
        "encode depends on how rows are batched"
    )
    assert torch.allclose(sae.encode(x[0]), acts[0], atol=TOLERANCE), (
        "encode of one vector differs from its row"
    )
    alone = sae.decode(acts, like=x) - sae.decode(torch.zeros_like(acts), like=x)
    twice = sae.decode(2 * acts, like=x) - sae.decode(torch.zeros_like(acts), like=x)
    assert torch.allclose(twice, 2 * alone, atol=TOLERANCE * max(1.0, float(alone.abs().max()))), (
        "decode is not affine"
    )


def _check_same(one: SAE, other: SAE) -> None:
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(one, name), getattr(other, name)), f"loading twice gives two {name}"
    assert (one.reads, one.writes) == (other.reads, other.writes)
    assert one.provenance == other.provenance, "loading twice gives two provenances"


def _check_provenance(sae: SAE, path: Path) -> None:
    assert sae.provenance.dialect, "the dialect has no name"
    assert sae.provenance.files, "no file is recorded"
    near = path.parent if path.is_file() else path
    hashes = {sha256(p) for p in [*near.rglob("*"), *near.parent.iterdir()] if p.is_file()}
    for name, digest in sae.provenance.files:
        assert digest in hashes, f"the recorded sha256 of {name} is that of no file"


def _check_damage(loader: Callable[[Path], SAE], path: Path) -> None:
    """A weight file cut in half must be an error of polysem, not a traceback of a library, and never an
    SAE."""
    with tempfile.TemporaryDirectory() as scratch:
        # Three levels of names are kept: some dialects say layer and model only there.
        levels = path.resolve().parts[-4:-1]
        copy = Path(scratch, *levels, path.name)
        copy.parent.mkdir(parents=True)
        if path.is_file():
            shutil.copy(path, copy)
        else:
            shutil.copytree(path, copy)
        files = [copy] if copy.is_file() else [p for p in copy.rglob("*") if p.is_file()]
        weights = max(files, key=lambda p: p.stat().st_size)
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        message = _refusal(loader, copy)
    assert message is not None, f"a truncated {weights.name} was loaded"
    assert weights.name in message, f"the error does not name the file {weights.name}: {message}"


def _refusal(loader: Callable[[Path], SAE], path: Path) -> str | None:
    """The message with which the loader refuses, None if it does not. Errors that are not polysem's pass
    through."""
    try:
        loader(path)
    except PolysemError as error:
        return str(error)
    return None
