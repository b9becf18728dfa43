"""Where the files lie that a settings file names: beside it, wherever a command is run.

Fields that may name a file are marked with `Located`. Settings keep what was written, which is what fingerprints and tables
say; `Places.settings` gives the copy that is read from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SCHEME = re.compile(r"(?!file:|neuronpedia:|gguf:)[A-Za-z][A-Za-z0-9+.-]+:")
"""of what lies elsewhere: zoo:, hub:, package:, http: ..."""
_FILE = re.compile(r"(?P<kind>(?:file|neuronpedia|gguf):)?(?P<path>[^#]*)(?P<part>#.*)?", re.DOTALL)

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Located:
    """Marks a field of settings that may name a file."""

    or_name: bool = False
    """what is no file there is a name: of a model on the Hub, or a word such as `builtin`"""
    when: Callable[[Any], bool] = lambda _: True
    """of the section: whether the field names a file at all"""
    split: Callable[[str], tuple[str, str]] = lambda ref: ("", ref)
    """what stands before the path, and the path; both together are the value"""


@dataclass(frozen=True)
class Places:
    """Relative paths follow the settings file; some inputs lie elsewhere now."""

    base: Path
    """folder of the settings file"""
    moved: Mapping[str, str] = field(default_factory=dict)
    """reference as it is written -> where it is now"""

    def find(self, ref: str, *, or_name: bool = False) -> str:
        """The reference to read from: with an absolute path where the path is relative and the settings file is not in the
        working directory.

        Args:
            ref: as written in the settings.
            or_name: it stays as it is where there is no such file.
        """
        ref = self.moved.get(ref, ref)
        if _SCHEME.match(ref):
            return ref
        kind, path, part = _FILE.fullmatch(ref).group("kind", "path", "part")  # pyright: ignore[reportOptionalMemberAccess]
        there = self.base / path
        if not path or path.startswith(("~", "/")) or self._is_here() or "://" in path:
            return ref
        if or_name and kind != "file:" and not there.exists():
            return ref
        return f"{kind or ''}{there}{part or ''}"

    def settings(self, settings: S) -> S:
        """A copy of settings, every reference in it found."""
        if self._is_here() and not self.moved:
            return settings
        changed: dict[str, Any] = {}
        for name, info in type(settings).model_fields.items():
            value = getattr(settings, name)
            mark = _mark(info)
            if isinstance(value, BaseModel):
                changed[name] = self.settings(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
                changed[name] = tuple(self.settings(item) for item in value)
            elif mark and mark.when(settings):
                changed[name] = self._found(value, mark)
        return settings.model_copy(update=changed)

    def _found(self, value: Any, mark: Located) -> Any:
        if isinstance(value, tuple):
            return tuple(self._found(item, mark) for item in value)
        if not isinstance(value, str):
            return value
        before, ref = mark.split(value)
        return before + self.find(ref, or_name=mark.or_name)

    def _is_here(self) -> bool:
        return self.base.resolve() == Path.cwd()


def _mark(info: FieldInfo) -> Located | None:
    inner = [m for part in get_args(info.annotation) for m in getattr(part, "__metadata__", ())]
    return next((m for m in (*info.metadata, *inner) if isinstance(m, Located)), None)


def here() -> Places:
    """The working directory: of settings that came from no file."""
    return Places(Path.cwd())
