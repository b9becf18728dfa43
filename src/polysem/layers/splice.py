"""The splice test: the model with its MLPs replaced by transcoders, and what that costs on text.

Every transcoder reads the spliced run, not the model's own: errors of early layers reach later ones. The first position of a
row keeps what the model itself writes (attention sinks are not what a transcoder is for). Beside it stands the model with
the same outputs set to zero, so that

    recovered = (zeroed - spliced) / (zeroed - clean)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.models.anatomy import Tap
from polysem.models.hf import HFModel
from polysem.models.hooks import Action, hooked
from polysem.positions import PLAIN
from polysem.progress import SILENT, Reporter
from polysem.saes.transcoder import Transcoder, TranscoderSet
from polysem.side_effects.measures import Estimate, jackknife
from polysem.types import Site

ROWS = 32
GROUPS = 20
"""of rows, for a jackknife"""


@dataclass(frozen=True)
class Spliced:
    """Cross-entropy of every row, nats a token."""

    clean: Float[np.ndarray, " rows"]
    spliced: Float[np.ndarray, " rows"]
    zeroed: Float[np.ndarray, " rows"]

    @property
    def recovered(self) -> Estimate:
        """Share of the loss of zeroing that the transcoders avoid, with its 95 % interval over rows."""
        return self._over_rows(
            lambda p: (
                (self.zeroed[p].mean() - self.spliced[p].mean())
                / (self.zeroed[p].mean() - self.clean[p].mean())
            )
        )

    @property
    def cost(self) -> Estimate:
        """Nats a token that the transcoders cost, with its 95 % interval over rows."""
        return self._over_rows(lambda p: (self.spliced[p] - self.clean[p]).mean())

    def _over_rows(self, of: Callable[[np.ndarray], float]) -> Estimate:
        n = min(GROUPS, len(self.clean))
        group = np.arange(len(self.clean)) % n
        return jackknife(lambda kept: float(of(np.flatnonzero(np.isin(group, kept)))), np.arange(n))


def splice(
    model: HFModel,
    found: TranscoderSet,
    tokens: Int[Tensor, "rows pos"],
    *,
    sites: Sequence[Site] | None = None,
    reporter: Reporter = SILENT,
) -> Spliced:
    """Cross-entropy of the model, of the model with what the set writes in place of its own, and with nothing there.

    Args:
        found: the transcoders; layers that it lacks stay the model's own.
        tokens: text, one length; a BOS in front where the transcoders were trained with one.
        sites: where the set stands for the model, of those that it writes; None: at all of them.

    Raises:
        NumericsError: of the model.
    """
    sites = found.sites if sites is None else sites
    ways: tuple[dict[Tap, list[Action]], ...] = (
        {},
        _replaced(model, found, sites),
        {model.tap(site): [_zeroed] for site in sites},
    )
    starts = range(0, len(tokens), ROWS)
    losses: list[list[np.ndarray]] = [[], [], []]
    for at in reporter.track(starts, total=len(starts), label="splice"):
        rows = tokens[at : at + ROWS].to(model.spec.device)
        for kept, actions in zip(losses, ways, strict=True):
            with torch.no_grad(), hooked(model.model, actions):
                said = model.logits(rows)[:, PLAIN.n_first : -1].double().log_softmax(-1).cpu()
            own = said.gather(2, rows[:, PLAIN.n_first + 1 :, None].cpu())[..., 0]
            kept.append(-own.mean(1).numpy())
    return Spliced(*(np.concatenate(kept) for kept in losses))


def splice_rows(
    model: HFModel,
    name: str,
    found: TranscoderSet,
    tokens: Int[Tensor, "rows pos"],
    *,
    reporter: Reporter = SILENT,
) -> list[dict[str, Any]]:
    """Rows of LAYER_SPLICE: everything replaced at once, and each written site alone. A site that layers write which are not
    in the set has none of its numbers, and says so."""
    own = [one.reads.layer or 0 for one in found.layers]
    missing = {
        site: [n for n in range((site.layer or 0) + 1) if n not in own] if found.cross_layer else []
        for site in found.sites
    }
    able = [site for site in found.sites if not missing[site]]
    kept = tokens.shape[1] - PLAIN.n_first - 1
    rows: list[dict[str, Any]] = []
    for what, sites in (*([("all", able)] if able else []), *((str(site), [site]) for site in found.sites)):
        row: dict[str, Any] = {"transcoders": name, "replaced": what, "n_tokens": 0}
        if lacking := missing[sites[0]]:
            row["why"] = f"layers {', '.join(map(str, lacking))} write it too, and are left out"
        else:
            made = splice(model, found, tokens, sites=sites, reporter=reporter)
            row |= {"n_tokens": len(tokens) * kept, **{way: float(x.mean()) for way, x in vars(made).items()}}
            for key, one in (("cost", made.cost), ("recovered", made.recovered)):
                row |= one.columns(key, f"{key}_")
        rows.append(row)
    return rows


def _replaced(model: HFModel, found: TranscoderSet, sites: Sequence[Site]) -> dict[Tap, list[Action]]:
    """What every tap does: where transcoders read they compute what they write, where they write it is put in."""
    pending: dict[Site, Tensor] = {}
    actions: dict[Tap, list[Action]] = {}

    def reading(one: Transcoder) -> Action:
        def act(h: Tensor) -> Tensor:
            for site, part in one.parts(h.float()).items():
                if site not in sites:
                    continue
                pending[site] = pending[site] + part if site in pending else part
            return h

        return act

    def writing(site: Site) -> Action:
        def act(h: Tensor) -> Tensor:
            made = pending.pop(site).to(h)
            return torch.cat([h[:, : PLAIN.n_first], made[:, PLAIN.n_first :]], 1)

        return act

    for one in found.layers:
        actions.setdefault(model.tap(one.reads), []).append(reading(one))
    for site in sites:
        actions.setdefault(model.tap(site), []).append(writing(site))
    return actions


def _zeroed(h: Tensor) -> Tensor:
    return torch.cat([h[:, : PLAIN.n_first], torch.zeros_like(h[:, PLAIN.n_first :])], 1)
