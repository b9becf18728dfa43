"""Sparse autoencoders: one record, one loader per dialect, one gate. Names resolve lazily; importing this
imports no torch."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.saes.base import SAE, Provenance
    from polysem.saes.fidelity import Fidelity
    from polysem.saes.gate import check_fidelity
    from polysem.saes.load import load_sae
    from polysem.saes.transcoders import load_transcoders

__all__ = ["SAE", "Fidelity", "Provenance", "check_fidelity", "load_sae", "load_transcoders"]

_HOMES = {
    "SAE": "base",
    "Provenance": "base",
    "Fidelity": "fidelity",
    "check_fidelity": "gate",
    "load_sae": "load",
    "load_transcoders": "transcoders",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
