"""Models behind one seam: white-box access to causal LMs. Names are resolved when first used, so importing
this is cheap."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.models.base import ModelSpec, WhiteBoxModel
    from polysem.models.hf import HFModel
    from polysem.models.load import load_model

__all__ = ["HFModel", "ModelSpec", "WhiteBoxModel", "load_model"]

_HOMES = {"HFModel": "hf", "ModelSpec": "base", "WhiteBoxModel": "base", "load_model": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
