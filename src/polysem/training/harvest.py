"""Activations of a model at some sites, run once over a corpus and kept on disk.

A harvest is a folder: `harvest.json` says what it is of, and `SITE/part-00012.npy` holds the activations of
128 rows of tokens as float16 [rows, tokens, width], special tokens in front left out. A part is written whole
or not at all, and only if all sites have it is it counted: a harvest that was interrupted goes on with the
first missing part, and a harvest of another model, corpus or site is refused, never mixed in.
Cost: one forward pass a token, stopped behind the last site; two bytes a number (1.2 MB per thousand tokens and
site at width 576). float16 keeps eleven bits, more than the bfloat16 that models are run in; what does not
fit it (65,504) is an error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.boundary.door import Door
from polysem.boundary.tensors import map_npy
from polysem.errors import NumericsError, StoreError, typed
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.store.io import read_json, replacing, write_json
from polysem.types import Site

ROWS_A_PART = 128
ROWS_A_PASS = 16
"""rows that go through the model at once: matrices tall enough for the processor, activations that stay in cache"""
_LIMIT = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class StoredActivations:
    """The whole parts of a harvest, in order."""

    folder: Path
    n_parts: int
    """parts that all sites have"""
    about: dict[str, Any]
    """what harvest.json says"""

    def part(self, site: Site, number: int) -> Float[np.ndarray, "rows pos width"]:
        """Activations of one part, float16, mapped from the disk. Raises StoreError if it is damaged or of another size."""
        path = part_file(self.folder, site, number)
        door = Door(
            "stored activations",
            f"rm {typed(path)}, then the same command: the part is made anew",
            StoreError,
            StoreError,
        )
        values = map_npy(path, door=door)
        if values.ndim != 3 or values.dtype != np.float16:
            raise door.refuse(
                path,
                f"it holds {values.dtype} of shape {values.shape}, expected float16 [rows, tokens, width]",
            )
        return values

    @property
    def n_tokens(self) -> int:
        """Tokens whose activations are there."""
        rows = min(self.n_parts * ROWS_A_PART, int(self.about["n_rows"]))
        return rows * int(self.about["tokens_a_row"])


def part_file(folder: Path, site: Site, number: int) -> Path:
    return folder / str(site) / f"part-{number:05d}.npy"


def harvest(
    model: WhiteBoxModel,
    tokens: Int[np.ndarray, "n_rows context"],
    sites: Sequence[Site],
    folder: Path,
    *,
    n_special: int,
    about: dict[str, Any],
    reporter: Reporter = SILENT,
) -> StoredActivations:
    """Run what is missing and give the whole harvest.

    Args:
        model: whose activations are wanted.
        tokens: rows of one length.
        sites: where to read.
        folder: where the harvest is, or comes to be.
        n_special: tokens in front of each row whose activations are not kept (`PositionPolicy.n_first`).
        about: what decides the activations, for the record: model and revision, corpus, context.
        reporter: told of every part.

    Raises:
        StoreError: if the folder holds a harvest of something else, or cannot be written.
        NumericsError: if an activation does not fit float16.
    """
    shape = {"n_rows": len(tokens), "tokens_a_row": tokens.shape[1] - n_special, "n_special": n_special}
    about = {**about, **shape, "sites": sorted(map(str, sites)), "rows_a_part": ROWS_A_PART}
    _claim(folder, about)
    n_parts = -(-len(tokens) // ROWS_A_PART)
    missing = [n for n in range(n_parts) if not all(part_file(folder, s, n).is_file() for s in sites)]
    done = n_parts - len(missing)
    for number in reporter.track(missing, total=n_parts, label="activations", done=done):
        rows = tokens[number * ROWS_A_PART : (number + 1) * ROWS_A_PART]
        for site, values in _run(model, rows, sites, n_special=n_special).items():
            with replacing(part_file(folder, site, number)) as stream:
                np.save(stream, values)
    return StoredActivations(folder, n_parts, about)


def _run(
    model: WhiteBoxModel, rows: Int[np.ndarray, "n context"], sites: Sequence[Site], *, n_special: int
) -> dict[Site, Float[np.ndarray, "n pos width"]]:
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    for batch in _batches(rows):
        for site, h in model.capture(torch.from_numpy(batch), sites).items():
            values = h[:, n_special:].cpu().numpy()
            largest = float(np.abs(values).max())
            if largest > _LIMIT:
                raise NumericsError(
                    f"activations at {site} reach {largest:.3g}; float16 holds at most {_LIMIT:g}",
                    hint="train at a site whose massive activations are smaller",
                )
            parts[site].append(values.astype(np.float16))
    return {site: np.concatenate(found) for site, found in parts.items()}


def _batches(rows: Int[np.ndarray, "n context"]) -> Iterator[Int[np.ndarray, "batch context"]]:
    for start in range(0, len(rows), ROWS_A_PASS):
        yield rows[start : start + ROWS_A_PASS].astype(np.int64)


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Write harvest.json, or check that what is there is of the same things."""
    if not (folder / "harvest.json").exists():
        write_json(folder / "harvest.json", about)
        return
    found = _read_about(folder)
    differing = [key for key in about if found.get(key) != about[key]]
    if differing:
        key = differing[0]
        raise StoreError(
            f"{folder} holds activations of something else: {key} is {found.get(key)!r} there, "
            f"{about[key]!r} is asked for",
            hint="give another folder (--work), or delete this one",
        )


def _read_about(folder: Path) -> dict[str, Any]:
    # Without it nobody knows what the parts are of, so they go too.
    again = f"rm -r {typed(folder)}, then the same command: the activations are made anew"
    return read_json(folder / "harvest.json", rebuild=again)
