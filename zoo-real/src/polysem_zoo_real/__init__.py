"""Sparse dictionaries of real language models as package data; the models themselves are other packages.

    >>> import polysem_zoo_real
    >>> polysem_zoo_real.path("saes", "smollm2/blocks.14.hook_resid_post")  # a folder in SAELens's layout

Each folder holds cfg.json, sae_weights.safetensors and card.json. What they were trained on and how good they
are stands in MODEL_CARD.md beside this file.
"""

from pathlib import Path

__all__ = ["names", "path"]

_ROOT = Path(__file__).resolve().parent


def names(kind: str) -> list[str]:
    """Names of the entries of one kind: "saes" (autoencoders of one site), "transcoders" or "glosses"."""
    if kind not in ("saes", "transcoders", "glosses"):
        raise ValueError(f"unknown kind of entry {kind!r}; expected saes, transcoders or glosses")
    folder = _ROOT / kind
    if kind == "glosses":
        return sorted(
            p.relative_to(folder).as_posix().removesuffix(".jsonl") for p in folder.rglob("*.jsonl")
        )
    return sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("cfg.json"))


def path(kind: str, name: str) -> Path:
    """Folder (file of "glosses") of an entry. Raises KeyError for an unknown name."""
    if name not in names(kind):
        raise KeyError(f"no {kind} entry {name!r}; there are {names(kind)}")
    return _ROOT / kind / (f"{name}.jsonl" if kind == "glosses" else name)
