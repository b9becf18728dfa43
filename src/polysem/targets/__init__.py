"""Targets: models of which only next-token distributions are seen, here or behind an address.

    Target, TargetPrompt, Answer     the seam
    LocalTarget                a model in this process; complete answers
    ServedTarget, Serving      an OpenAI-compatible server; answers as far as they are granted
    ResponseCache, Budget      what was paid for is kept; what may be paid

Importing this imports no torch.
"""

from polysem.targets.base import Answer, Target, TargetPrompt
from polysem.targets.cache import ResponseCache
from polysem.targets.local import LocalTarget
from polysem.targets.served import ServedTarget, Serving
from polysem.targets.spend import Budget

__all__ = [
    "Answer",
    "Budget",
    "LocalTarget",
    "ResponseCache",
    "ServedTarget",
    "Serving",
    "Target",
    "TargetPrompt",
]
