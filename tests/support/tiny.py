"""A tiny model as a folder, as a user would have it."""

from pathlib import Path
from typing import Any

from polysem.models.base import quiet_transformers
from polysem.worlds.tiny import tiny_model


def save_tiny_model(family: str, folder: Path, **options: Any) -> Path:
    """Write a tiny model as an ordinary Hugging Face folder (config, safetensors, tokenizer) and give the
    folder back.

    Args:
        family: one of `TINY_FAMILIES`.
        folder: made if it does not exist.
        **options: as of `tiny_model`.
    """
    tiny = tiny_model(family, **options)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder
