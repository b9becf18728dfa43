"""Sparse autoencoders: one record, one loader per dialect, one gate. Names resolve lazily; importing this
imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polysem.saes.base import SAE, Provenance
    from polysem.saes.fidelity import Fidelity, check_fidelity
    from polysem.saes.load import load_sae

__all__ = ["SAE", "Fidelity", "Provenance", "check_fidelity", "load_sae"]

_HOMES = {
    "SAE": "base",
    "Provenance": "base",
    "Fidelity": "fidelity",
    "check_fidelity": "fidelity",
    "load_sae": "load",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"polysem.saes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
