"""Which dialect a folder or file speaks, told by its files."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.errors import FormatError
from polysem.saes.source import PICKLES, SAFETENSORS_HINT, Source, listing

if TYPE_CHECKING:
    from polysem.saes.parts import Parts

SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("sae_weights.safetensors", "cfg.json"), "saelens:load"),
    (("sae.safetensors", "cfg.json"), "sparsify:load"),
    (("params.npz",), "gemma_scope:load_npz"),
    (("params.safetensors",), "gemma_scope:load_safetensors"),
    (("ae.pt", "config.json"), "dictionary_learning:load"),
    (("hyperparams.json", "checkpoints/final.safetensors"), "llama_scope:load"),
)
"""files that lie together, the weights or the rarest first -> module:function"""
KNOWN_FILES = tuple(dict.fromkeys(name for names, _ in SIGNS for name in names))
_TORCH = (".pt", ".pth")


def read_parts(source: Source) -> "Parts":
    """What the files of `source` say, read by the dialect they speak.

    Raises:
        FormatError: if the files are of no known dialect, incomplete, or damaged.
        UnknownReferenceError: never; resolving references happens before.
    """
    path = source.path
    if path.is_file():
        return _read_file(source)
    for names, loader in SIGNS:
        if all((path / name).is_file() for name in names):
            return _call(loader, source)
    torch_files = [p for p in path.iterdir() if p.suffix in _TORCH and p.name != "ae.pt"]
    if len(torch_files) == 1:
        return _call("checkpoints:load", _at(source, torch_files[0]))
    raise FormatError(
        f"{path} holds no SAE of a known format; it holds {listing(path)}{_incomplete(path)}", hint=_formats()
    )


def _read_file(source: Source) -> "Parts":
    path = source.path
    if path.suffix in PICKLES:
        raise FormatError(f"{path} is a pickle: reading it could run any code", hint=SAFETENSORS_HINT)
    if path.suffix == ".npz":
        return _call("gemma_scope:load_npz", source)
    for names, loader in SIGNS:
        for name in names:
            folder = path.parents[name.count("/")]
            if path == folder / name and all((folder / other).is_file() for other in names):
                return _call(loader, _at(source, folder))
    if path.suffix in _TORCH and path.name != "ae.pt":
        return _call("checkpoints:load", source)
    raise FormatError(f"{path} is no SAE of a known format{_incomplete(path.parent)}", hint=_formats())


def _call(loader: str, source: Source) -> "Parts":
    module, _, function = loader.partition(":")
    return getattr(import_module(f"polysem.saes.dialects.{module}"), function)(source)


def _at(source: Source, path: Path) -> Source:
    """The same source at another path; the label follows, since dialects read names from it."""
    from dataclasses import replace

    if source.path in path.parents:
        return replace(source, path=path, label=f"{source.label.rstrip('/')}/{path.relative_to(source.path)}")
    return replace(source, path=path)


def _incomplete(folder: Path) -> str:
    """Which file is missing, if some files of a dialect are there."""
    for names, _ in SIGNS:
        there = [name for name in names if (folder / name).is_file()]
        if there:
            absent = [name for name in names if name not in there]
            return f"; beside {', '.join(there)} it lacks {', '.join(absent)}" if absent else ""
    return ""


def _formats() -> str:
    return "expected one of: " + "; ".join(" + ".join(names) for names, _ in SIGNS) + "; or one .pt/.pth file"
