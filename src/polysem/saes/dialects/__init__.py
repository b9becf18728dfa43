"""Which dialect a folder or file speaks, told by its files. Adding one is a module and a record here; other
distributions add theirs by an entry point of the group `polysem.saes` that names a record."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from polysem.boundary.door import Door
from polysem.boundary.files import listing, regular
from polysem.boundary.tensors import PICKLES, SAFETENSORS_HINT
from polysem.errors import FormatError
from polysem.registry import check_links
from polysem.saes.source import WeightFiles
from polysem.vocabulary import Vocabulary, Word, attribute

if TYPE_CHECKING:
    from polysem.saes.parts import SAEParts


@dataclass(frozen=True)
class Dialect(Word):
    """A way in which SAEs are written to disk."""

    load: str
    """"module:function", (WeightFiles) -> SAEParts"""
    files: tuple[str, ...] = ()
    """names that lie together in a folder, the weights or the rarest first"""
    suffixes: tuple[str, ...] = ()
    """endings of a single file of any other name"""


_HERE = "polysem.saes.dialects."
DIALECTS: Vocabulary[Dialect] = Vocabulary(
    "SAE dialect",
    Dialect(
        "saelens",
        "SAELens",
        "folders of SAELens 2 to 6",
        load=f"{_HERE}saelens:load",
        files=("sae_weights.safetensors", "cfg.json"),
    ),
    Dialect(
        "sparsify",
        "sparsify",
        "a hookpoint's folder of EleutherAI sparsify",
        load=f"{_HERE}sparsify:load",
        files=("sae.safetensors", "cfg.json"),
    ),
    Dialect(
        "gemma-scope",
        "Gemma Scope",
        "archives of Gemma Scope",
        load=f"{_HERE}gemma_scope:load_npz",
        files=("params.npz",),
        suffixes=(".npz",),
    ),
    Dialect(
        "gemma-scope-2",
        "Gemma Scope 2",
        "folders of Gemma Scope 2",
        load=f"{_HERE}gemma_scope:load_safetensors",
        files=("params.safetensors",),
    ),
    Dialect(
        "dictionary_learning",
        "dictionary_learning",
        "a trainer's folder of dictionary_learning",
        load=f"{_HERE}dictionary_learning:load",
        files=("ae.pt", "config.json"),
    ),
    Dialect(
        "llama-scope",
        "Llama Scope",
        "folders of Llama Scope",
        load=f"{_HERE}llama_scope:load",
        files=("hyperparams.json", "checkpoints/final.safetensors"),
    ),
    Dialect(
        "checkpoint",
        "torch checkpoints",
        "one torch file of OpenAI, Goodfire or Qwen Scope",
        load=f"{_HERE}checkpoints:load",
        suffixes=(".pt", ".pth"),
    ),
    group="polysem.saes",
)

_FILE = Door("SAE", "give the folder or the file of an SAE", missing=FormatError)


def known_files() -> tuple[str, ...]:
    """The names by which folders are told."""
    return tuple(dict.fromkeys(name for dialect in DIALECTS.values() for name in dialect.files))


def read_parts(source: WeightFiles) -> "SAEParts":
    """What the files of `source` say, read by the dialect they speak.

    Raises:
        FormatError: if the files are of no known dialect, incomplete, or damaged.
    """
    path, single = source.path, not source.path.is_dir()
    if single:
        regular(path, door=_FILE)  # no pipe, no device
    if path.suffix in PICKLES:
        raise FormatError(f"{path} is a pickle: reading it could run any code", hint=SAFETENSORS_HINT)
    check_links(path.parent if single else path)
    for dialect in DIALECTS.values():
        for name in dialect.files if single else dialect.files[:1]:
            if single and name.count("/") >= len(path.parents):
                continue  # a bare name lies in no folder of a folder
            folder = path.parents[name.count("/")] if single else path
            if all((folder / other).is_file() for other in dialect.files) and path in (folder, folder / name):
                return attribute(dialect.load)(_at(source, folder))
    # ae.pt is a file of a folder's dialect, and read by itself where the rest is missing
    around = (
        [p for p in path.iterdir() if p.name not in known_files() or p.suffix == ".pt"] if not single else []
    )
    others = [path] if single else around
    for dialect in DIALECTS.values():
        alone = [p for p in others if p.suffix in dialect.suffixes and (single or not dialect.files)]
        if len(alone) == 1:
            return attribute(dialect.load)(_at(source, alone[0]))
    found = (
        "is no SAE of a known format"
        if single
        else f"holds no SAE of a known format; it holds {listing(path)}"
    )
    formats = "; ".join(" + ".join(d.files) for d in DIALECTS.values() if d.files)
    raise FormatError(
        f"{path} {found}{_incomplete(path.parent if single else path)}",
        hint=f"expected one of: {formats}; or one .pt/.pth file",
    )


def _at(source: WeightFiles, path: Path) -> WeightFiles:
    """The same source at another path; the label follows, since dialects read names from it."""
    if source.path in path.parents:
        return replace(source, path=path, label=f"{source.label.rstrip('/')}/{path.relative_to(source.path)}")
    return replace(source, path=path)


def _incomplete(folder: Path) -> str:
    """Which file is missing, if some files of a dialect are there."""
    for dialect in DIALECTS.values():
        there = [name for name in dialect.files if (folder / name).is_file()]
        if there:
            absent = [name for name in dialect.files if name not in there]
            return f"; beside {', '.join(there)} it lacks {', '.join(absent)}" if absent else ""
    return ""
