"""Models behind one seam: white-box access to causal LMs. Names are resolved when first used, so importing
this is cheap."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.models.base import ModelSpec, WhiteBoxModel
    from polysem.models.hf import HFModel
    from polysem.models.load import load_model

__all__ = ["HFModel", "ModelSpec", "WhiteBoxModel", "load_model"]

_HOMES = {"HFModel": "hf", "ModelSpec": "base", "WhiteBoxModel": "base", "load_model": "load"}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
