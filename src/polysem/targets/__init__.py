"""Targets: models of which only next-token distributions are seen, here or behind an address.

    Target, Prompt, Answer     the seam
    LocalTarget                a model in this process; complete answers
    ServedTarget, Serving      an OpenAI-compatible server; answers as far as they are granted
    ResponseCache, Budget      what was paid for is kept; what may be paid

Importing this imports no torch.
"""

from polysem.targets.base import Answer, Prompt, Target
from polysem.targets.cache import ResponseCache
from polysem.targets.local import LocalTarget
from polysem.targets.served import ServedTarget, Serving
from polysem.targets.spend import Budget

__all__ = ["Answer", "Budget", "LocalTarget", "Prompt", "ResponseCache", "ServedTarget", "Serving", "Target"]
