"""Small language models, sparse autoencoders and texts as package data.

    >>> import polysem_zoo
    >>> polysem_zoo.names("models")
    ['gpt2', 'llama', 'neox']
    >>> polysem_zoo.path("saes", "gpt2/blocks.2.hook_resid_post")  # a folder in SAELens's layout
    >>> polysem_zoo.path("transcoders", "gpt2/plt")  # a folder in circuit-tracer's layout

Everything is ordinary Hugging Face, SAELens and circuit-tracer files: nothing here is needed to read them. What each is,
what it was trained on and how good it is stands in CARD.md beside this file.
"""

from pathlib import Path

__all__ = ["names", "path"]

_ROOT = Path(__file__).resolve().parent
_MARK = {"models": "config.json", "saes": "cfg.json", "transcoders": "config.yaml"}
_SUFFIX = {"texts": ".txt", "glosses": ".jsonl"}


def names(kind: str) -> list[str]:
    """Names of the entries of one kind: "models", "saes", "transcoders", "texts", "features" or "glosses"."""
    folder = _ROOT / kind
    if kind in _MARK:
        return sorted(str(p.parent.relative_to(folder)) for p in folder.rglob(_MARK[kind]))
    if kind == "texts":
        return sorted(p.stem for p in folder.glob("*.txt"))
    if kind == "glosses":
        return sorted(str(p.relative_to(folder)).removesuffix(".jsonl") for p in folder.rglob("*.jsonl"))
    if kind == "features":
        return sorted(str(p.parent.relative_to(folder)) for p in folder.rglob("features.parquet"))
    raise ValueError(
        f"unknown kind of zoo entry {kind!r}; expected models, saes, transcoders, texts, features or glosses"
    )


def path(kind: str, name: str) -> Path:
    """Folder (models, saes, transcoders, features) or file (texts, glosses) of an entry. Raises KeyError for an unknown name."""
    if name not in names(kind):
        raise KeyError(f"no {kind} entry {name!r}; there are {names(kind)}")
    return _ROOT / kind / (name + _SUFFIX.get(kind, ""))
