"""The linear world, under the name by which tests know it; it lives in `polysem.worlds.linear`."""

from polysem.worlds.linear import SITE, LinearWorld

__all__ = ["SITE", "LinearWorld"]
