"""Everything that polysem raises on purpose.

    PolysemError
    ├── ConfigError            a study file or an argument is not what it must be
    ├── UnknownReferenceError  a model, SAE, gloss or zoo reference cannot be resolved
    ├── FormatError            a file is missing, truncated, or not in the format it claims
    ├── MismatchError          two inputs do not belong together (SAE and model, glosses and SAE, tokenizer and model)
    ├── FidelityError          an SAE does not reconstruct the activations it was loaded for
    ├── SiteError              a hook point does not exist in this model family
    ├── StoreError             a table or manifest on disk is damaged, stale or foreign
    └── NumericsError          a number that must be finite is not

Each carries what happened, the value seen and the value expected in its message, and in `hint` what to do next.
"""

import shlex


def typed(value: object) -> str:
    """A path or a name as it is typed in a command: quoted where a shell would take it apart."""
    return shlex.quote(str(value))


class PolysemError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what happened, the value seen and what was expected.
        hint: the next thing to do; often a command.
    """

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  next: {self.hint}" if self.hint else message


class ConfigError(PolysemError):
    """A study file or an argument is not what it must be."""


class UnknownReferenceError(PolysemError):
    """A model, SAE, gloss or zoo reference cannot be resolved."""


class FormatError(PolysemError):
    """A file is missing, truncated, or not in the format it claims."""


class MismatchError(PolysemError):
    """Two inputs do not belong together."""


class FidelityError(PolysemError):
    """An SAE does not reconstruct the activations it was loaded for."""


class SiteError(PolysemError):
    """A hook point does not exist in this model family."""


class StoreError(PolysemError):
    """A table or manifest on disk is damaged, stale or foreign."""


class NumericsError(PolysemError):
    """A number that must be finite is not."""
