"""Shared value types: hook points and feature references.

A `Site` names one place in a model's forward pass. It is parsed once, at the edge, from the name that the
field uses (`blocks.5.hook_resid_post`, `blocks.3.mlp.hook_post`, `hook_embed`) and printed the same way.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from polysem.errors import SiteError

BlockPoint = Literal[
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_in",
    "attn.hook_z",
    "attn.hook_out",
    "mlp.hook_in",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "mlp.hook_out",
]
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")


@dataclass(frozen=True, order=True)
class Site:
    """One hook point: a layer (None for the embedding) and a point inside it."""

    layer: int | None
    point: str

    @classmethod
    def parse(cls, name: str) -> "Site":
        """The site of a hook name.

        Raises:
            SiteError: if the name is no hook point of the vocabulary.
        """
        if name == "hook_embed":
            return cls(None, "hook_embed")
        match = _BLOCK.match(name)
        if match and match.group(2) in get_args(BlockPoint):
            return cls(int(match.group(1)), match.group(2))
        raise SiteError(
            f"unknown hook point {name!r}; expected 'hook_embed' or 'blocks.N.POINT' "
            f"with POINT one of {', '.join(get_args(BlockPoint))}",
            hint="write the site as in TransformerLens, e.g. blocks.5.hook_resid_post",
        )

    def __str__(self) -> str:
        return self.point if self.layer is None else f"blocks.{self.layer}.{self.point}"

    @property
    def layer_type(self) -> str:
        """Short label of the point, as used in regressions: `resid_post`, `mlp_out`, `attn_out`, ..."""
        return self.point.rsplit(".", 1)[-1].removeprefix("hook_") if "." not in self.point else self.point


@dataclass(frozen=True, order=True)
class FeatureRef:
    """One feature: a row of one dictionary, whichever dictionary its partner is of."""

    dictionary: str
    """label, as in tables"""
    index: int

    def __str__(self) -> str:
        return f"{self.dictionary}/{self.index}"
