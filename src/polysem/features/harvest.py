"""One pass over a corpus: what every feature of every SAE fires on.

A batch of rows goes through the model once, up to the last site; the sites of all SAEs are captured together
and each SAE encodes its own. The first position of a row and massive tokens are left out of everything (`positions`), as in
the fidelity gate. Per feature, bounded state is kept
(features/best.py): how often it fires, its best windows (at most one a row), and its best tokens.

Memory: n_contexts x window x 4 bytes a feature, one more copy of the encoders, and the active features of one
block of rows. Time: the forward pass, and less than a bare product with the encoders (features/encoder.py);
state is touched only where an activation is among a feature's best so far. An unfinished pass is continued from its checkpoint and gives the same bits.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polysem.corpus import TokenRows
from polysem.errors import NumericsError, StoreError
from polysem.features.best import Harvest, HarvestPlan
from polysem.features.encoder import ActiveEncoder
from polysem.models.base import WhiteBoxModel
from polysem.positions import PLAIN
from polysem.progress import SILENT, Reporter
from polysem.saes.base import SAE
from polysem.store.io import read_arrays, write_arrays
from polysem.types import Site

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 32
"""batches between checkpoints"""
ENCODED_AT_ONCE = 1 << 26
"""activations (rows x positions x features) in memory together: 256 MiB in float32"""
_FORMAT = 2
"""of a checkpoint; raise it when the meaning of an array of `Harvest` changes"""


def harvest(
    model: WhiteBoxModel,
    saes: Mapping[str, SAE],
    rows: TokenRows,
    *,
    plan: HarvestPlan,
    checkpoint: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Harvest]:
    """What every feature fires on, by SAE label.

    Args:
        model: runs the rows.
        saes: by label; they are moved to the model's device.
        rows: the text; the first position of each row and massive tokens are left out of everything.
        plan: what to keep.
        checkpoint: file that holds the state of a pass, written every `CHECKPOINT_EVERY` batches and at the
            end. One that is damaged, or was written for other inputs, is left aside with a warning.
        reporter: is told of every batch.

    Raises:
        NumericsError: if an SAE gives an activation that is not finite.
        StoreError: if the checkpoint cannot be written.
    """
    context = rows.tokens.shape[1]
    here = {label: sae.to(model.spec.device) for label, sae in saes.items()}
    states = {
        label: Harvest.empty(sae.d_sae, plan, context=context, first=max(rows.n_special, PLAIN.n_first))
        for label, sae in here.items()
    }
    encoders = {label: ActiveEncoder(sae) for label, sae in here.items()}
    sites = sorted({sae.reads for sae in here.values()}, key=str)
    mark, done = "", 0
    if checkpoint:
        mark = _fingerprint(model, saes, sites, rows, plan)
        done = _resume(checkpoint, states, mark)
    starts = range(0, len(rows.tokens), plan.batch_rows)

    def seen(at: int) -> tuple[np.ndarray, dict[Site, Tensor]]:
        tokens = rows.tokens[at : at + plan.batch_rows].astype(np.int64)
        return tokens, model.capture(torch.from_numpy(tokens), sites)

    limits = _limits(seen(0)[1]) if done else {}
    for n in reporter.track(range(done, len(starts)), total=len(starts), label="harvest", done=done):
        at = starts[n]
        tokens, captured = seen(at)
        limits = limits or _limits(captured)
        for label, encoder in encoders.items():
            site = encoder.sae.reads
            _take(label, encoder, captured[site], tokens, states[label], first_row=at, limit=limits[site])
        # the last one too: other SAEs of the study may still have to go through the corpus
        if checkpoint and ((n + 1) % CHECKPOINT_EVERY == 0 or n + 1 == len(starts)):
            _save(checkpoint, states, mark, done=n + 1)
    return states


def _take(
    label: str,
    encoder: ActiveEncoder,
    activations: Tensor,
    tokens: np.ndarray,
    state: Harvest,
    *,
    first_row: int,
    limit: float,
) -> None:
    """Encode the activations [batch pos d_in] of one batch, in blocks of rows, and add them to `state`; tokens whose
    norm is above the limit do not count."""
    d_sae, site = encoder.sae.d_sae, encoder.sae.reads
    block = max(1, ENCODED_AT_ONCE // (activations.shape[1] * d_sae))
    for n in range(0, len(tokens), block):
        counted = activations[n : n + block, state.first :].flatten(0, 1)
        try:
            acts = encoder(counted)
        except NumericsError as error:
            raise NumericsError(
                f"SAE {label} at {site} gives activations that are not finite on rows {first_row + n} to "
                f"{first_row + min(n + block, len(tokens)) - 1} of the corpus",
                hint="fetch the files of the SAE again: its weights are too large for float32",
            ) from error
        ordinary = PLAIN.ordinary(_norms(counted), limit=limit)
        state.add(acts.only(ordinary), tokens[n : n + block], first_row=first_row + n)


def _limits(first: Mapping[Site, Tensor]) -> dict[Site, float]:
    """The norm above which a token is massive, by site, from activations [batch pos d] of the first batch."""
    return {site: PLAIN.limit(_norms(x[:, PLAIN.n_first :].flatten(0, 1))) for site, x in first.items()}


def _norms(x: Tensor) -> np.ndarray:
    return x.double().norm(dim=1).cpu().numpy()


def _fingerprint(
    model: WhiteBoxModel, saes: Mapping[str, SAE], sites: list[Site], rows: TokenRows, plan: HarvestPlan
) -> str:
    """What a pass depends on. The model counts by what it computes on the first row: names may be shared,
    and another device or library gives other bits."""
    first = model.capture(torch.from_numpy(rows.tokens[:1].astype(np.int64)), sites)
    facts = {
        "format": _FORMAT,
        "model": [model.spec.ref, model.spec.revision, model.spec.dtype, model.spec.device],
        "activations": [_sha256(first[site]) for site in sites],
        "saes": [[label, *_contents(sae)] for label, sae in saes.items()],
        "rows": [hashlib.sha256(rows.tokens.tobytes()).hexdigest(), rows.n_special],
        "massive": [PLAIN.n_first, PLAIN.massive],
        "plan": [plan.n_contexts, plan.window, plan.n_tokens, plan.batch_rows, ENCODED_AT_ONCE],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _contents(sae: SAE) -> list[str]:
    """Every field of an SAE that its activations may depend on."""
    found = []
    for field in fields(sae):
        value = getattr(sae, field.name)
        if field.name == "provenance":
            continue
        parts = value if isinstance(value, tuple) else (value,)
        found.append(
            ":".join([field.name, *(_sha256(p) if isinstance(p, Tensor) else str(p) for p in parts)])
        )
    return found


def _sha256(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def _save(path: Path, states: Mapping[str, Harvest], mark: str, *, done: int) -> None:
    arrays = {"done": np.array([done]), "fingerprint": np.frombuffer(mark.encode(), np.uint8)}
    for n, state in enumerate(states.values()):
        arrays |= {f"{n}/{name}": array for name, array in state.arrays().items()}
    write_arrays(path, arrays)


def _resume(path: Path, states: Mapping[str, Harvest], mark: str) -> int:
    """Batches already done, with the states restored; 0 where the checkpoint is absent, damaged or of
    another pass."""
    if not path.exists():
        return 0
    try:
        arrays = read_arrays(path, rebuild="run the same command again")
    except StoreError as error:
        log.warning("the harvest starts again: %s", error)
        return 0
    if "fingerprint" not in arrays or arrays["fingerprint"].tobytes().decode() != mark:
        log.warning("the harvest starts again: %s is of another model, SAE, corpus or setting", path)
        return 0
    for n, state in enumerate(states.values()):
        state.restore({name: arrays[f"{n}/{name}"] for name in state.arrays()})
    done = int(arrays["done"][0])
    log.info("the harvest continues after batch %d of %s", done, path)
    return done
