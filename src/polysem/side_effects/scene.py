"""What directions are judged in: a model, prompts in two halves, token sets, and a dictionary that is looked at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int

from polysem.act.base import edited_positions
from polysem.atlas import PromptResponse, Responder
from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.models.base import WhiteBoxModel
from polysem.models.hf import HFModel
from polysem.positions import PLAIN
from polysem.progress import Reporter
from polysem.readouts import CategoryWords, set_problem
from polysem.saes.base import SAE, decoder_rows
from polysem.seeds import rng_for
from polysem.side_effects.directions import Direction
from polysem.side_effects.linear import LinearEffects, linear_effects, own_sets
from polysem.side_effects.measures import Evidence
from polysem.side_effects.push import Pushed, Readout, follows, median_firing, push
from polysem.types import Site

COUNTED = 0.25
"""of the readout's median firing: what counts as a feature that moved"""


@dataclass(frozen=True)
class Scene:
    """What directions are judged in: a model, prompts in two halves, and what is read."""

    model: WhiteBoxModel
    prompts: Sequence[Sequence[int]]
    select: Bool[np.ndarray, " prompts"]
    """what is chosen, forecast and repaired is of these; all that is reported of the others"""
    sets: Sequence[Sequence[int]]
    """token ids of features, then of categories"""
    set_features: Int[np.ndarray, " n_features"]
    """feature of each of the first sets"""
    categories: Sequence[str]
    label: str
    dictionary: SAE
    """whose features' token sets are read"""
    table: pa.Table
    """its rows of FEATURES"""
    readout: Readout | None = None
    read_names: Sequence[str] = ()
    """of the readout's features: number and gloss"""
    positions: str = "all_but_first"
    token_set: str = "out"
    seed: int = 0
    made: dict[Site, list[PromptResponse]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: WhiteBoxModel,
        sae: SAE,
        features: pa.Table,
        prompts: pa.Table,
        *,
        label: str,
        readout: tuple[str, SAE] | None = None,
        positions: str = "all_but_first",
        token_set: str = "out",
        word_start: bool = True,
        seed: int = 0,
    ) -> "Scene":
        """The scene of a study.

        Args:
            sae: dictionary whose features' tokens are read; usually of the site that is steered.
            features: FEATURES.
            prompts: PROMPTS.
            label: of the dictionary in `features`.
            readout: label and dictionary whose activations are looked at.
            positions: which are edited.
            token_set: in | out.
            word_start: whether what comes next begins with a space.

        Raises:
            ConfigError: no token set that can be read, or a half without prompts.
        """
        rows = [
            row
            for row in sorted(prompts.to_pylist(), key=lambda row: row["prompt_id"])
            if 1 < len(row["token_ids"]) <= model.spec.n_ctx and max(row["token_ids"]) < model.spec.d_vocab
            and edited_positions(positions, len(row["token_ids"])).any()
        ]  # fmt: skip
        select = np.array([row["split"] == "select" for row in rows], dtype=bool)
        if not select.any() or select.all():
            raise ConfigError(
                f"{int(select.sum())} select and {int((~select).sum())} confirm prompts; expected some of each",
                hint="raise prompts.n in the study",
            )
        own = features.filter(pc.equal(features["sae"], label)).sort_by("feature")
        pairs = zip(own["feature"].to_pylist(), own[f"tokens_{token_set}"].to_pylist(), strict=True)
        read = {feature: ids for feature, ids in pairs if set_problem(ids, model.W_E) is None}
        if not read:
            raise ConfigError(
                f"no feature of SAE {label!r} has a token set {token_set!r} that can be read",
                hint="polysem features STUDY.toml",
            )
        words = CategoryWords.of(model.token_strings(range(model.spec.d_vocab)), word_start=word_start)
        sets = [*read.values(), *(row.nonzero()[:, 0].tolist() for row in words.inside)]
        tokens = [row["token_ids"] for row in rows]
        seen, names = None, []
        if readout is not None:
            others = features.filter(pc.equal(features["sae"], readout[0]))
            gloss = dict(zip(others["feature"].to_pylist(), others["gloss"].to_pylist(), strict=True))
            names = [f"{k}: {gloss[k]}" if gloss.get(k) else f"{k}" for k in range(readout[1].d_sae)]
            seen = Readout(*readout, threshold=COUNTED * median_firing(model, readout[1], tokens))
        return cls(
            model=model, prompts=tokens, select=select, sets=sets, set_features=np.array(list(read)),
            categories=words.names, label=label, dictionary=sae, table=own, readout=seen,
            read_names=names, positions=positions, token_set=token_set, seed=seed,
        )  # fmt: skip

    @property
    def confirm(self) -> Bool[np.ndarray, " prompts"]:
        """The other half."""
        return ~self.select

    def confirmed(self) -> "Scene":
        """The scene of the confirm prompts alone."""
        some = np.flatnonzero(self.confirm).tolist()
        return replace(self, prompts=[self.prompts[k] for k in some], select=np.zeros(len(some), dtype=bool))

    def features(self, ids: Iterable[int]) -> list[Direction]:
        """Decoder rows of the dictionary, each with its own tokens.

        Raises:
            ConfigError: a feature that is not there.
            MismatchError: one without a direction.
        """
        W_dec = decoder_rows(self.dictionary)
        tokens = {int(f): tuple(self.sets[k]) for k, f in enumerate(self.set_features)}
        found = []
        for k in ids:
            if not 0 <= k < len(W_dec):
                raise ConfigError(f"feature {k} of {self.label}; expected 0 to {len(W_dec) - 1}")
            found.append(
                Direction(
                    f"feature {k}",
                    "feature",
                    self.dictionary.writes,
                    W_dec[k],
                    tokens.get(k, ()),
                    self.label,
                    k,
                )
            )
        return found

    def responses(self, site: Site) -> list[PromptResponse]:
        """Linear responses of the select prompts at a site; none for a model that is not of transformers. Made once."""
        if site not in self.made and isinstance(self.model, HFModel):
            respond = Responder(self.model, site, self.sets, positions=self.positions)
            self.made[site] = [respond(self.prompts[k]) for k in np.flatnonzero(self.select).tolist()]
        return self.made.get(site, [])

    def with_sets(self, directions: Sequence[Direction]) -> tuple["Scene", Int[np.ndarray, " n"]]:
        """The scene that also reads what the directions are meant to move, and where."""
        sets = [list(one) for one in self.sets]
        own = own_sets([d.tokens for d in directions], sets)
        same = len(sets) == len(self.sets)
        return (self if same else replace(self, sets=sets, made={})), own

    def push(self, directions: Sequence[Direction], *, reporter: Reporter, **dose: Any) -> Pushed:
        """`push` on the prompts of the scene."""
        return push(
            self.model, self.prompts, directions, sets=self.sets, positions=self.positions,
            readout=self.readout, reporter=reporter, **dose,
        )  # fmt: skip

    def measured(
        self, pushed: Pushed, own: Int[np.ndarray, " n"], absent: Bool[np.ndarray, "n prompts"] | None = None
    ) -> Evidence:
        """What measures are computed from."""
        threshold = np.nan if self.readout is None else self.readout.threshold
        return Evidence(pushed, own, len(self.set_features), threshold, absent)

    def absent(self, directions: Sequence[Direction]) -> Bool[np.ndarray, "n prompts"]:
        """Prompts without what a direction is meant to move: its feature fires at none of their positions; of a direction
        that is no feature's, none of its tokens is among theirs."""
        found = np.empty((len(directions), len(self.prompts)), dtype=bool)
        for k, d in enumerate(directions):
            if d.feature is not None and d.sae == self.label:
                found[k] = ~self._fires[:, d.feature]
            else:
                found[k] = [set(d.tokens).isdisjoint(ids) for ids in self.prompts]
        return found

    @cached_property
    def _fires(self) -> Bool[np.ndarray, "prompts d_sae"]:
        """Whether a feature fires at a position that counts."""
        sae = self.dictionary
        rows = []
        for ids in self.prompts:
            tokens = torch.tensor([list(ids)], device=self.model.spec.device)
            seen = self.model.capture(tokens, [sae.reads])[sae.reads][0].cpu()
            codes = sae.encode(seen[torch.from_numpy(PLAIN.counted(len(ids)))]).detach()
            rows.append((codes > 0).any(0).numpy())
        return np.stack(rows)

    def isotropic(self, site: Site, n: int) -> list[Direction]:
        """Random directions of a site, always the same ones."""
        width = self.model.site_width(site)
        return [
            Direction(
                f"isotropic {k}", "isotropic", site,
                rng_for(self.seed, "side-effects", "isotropic", str(site), k).standard_normal(width),
            )
            for k in range(n)
        ]  # fmt: skip

    @cached_property
    def all_rows(self) -> Float[np.ndarray, "d_sae d"]:
        """Unit decoder rows; zero rows where there is none."""
        return unit_rows(decoder_rows(self.dictionary))

    @cached_property
    def all_own(self) -> Int[np.ndarray, " d_sae"]:
        """Place of every feature's own set; -1 without."""
        own = np.full(len(self.all_rows), -1, dtype=np.int64)
        own[self.set_features] = np.arange(len(self.set_features))
        return own

    def of_all_features(self, dose: float) -> LinearEffects | None:
        """Linear effects of every feature; None where gradients are not to be had."""
        responses = self.responses(self.dictionary.writes)
        return linear_effects(self.all_rows, responses, dose=dose) if responses else None


def readouts_after(model: WhiteBoxModel, site: Site, saes: Mapping[str, SAE]) -> list[str]:
    """Labels of dictionaries that can see a push at a site, the last one first."""
    able = [label for label in saes if follows(model, site, saes[label].reads)]
    late = [label for label in able if all(follows(model, saes[o].reads, saes[label].reads) for o in able)]
    return [*late, *(label for label in able if label not in late)]
