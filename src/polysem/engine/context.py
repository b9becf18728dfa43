"""What stages work with, loaded when first asked for and once: the model, the SAEs, the feature table."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import SAEConfig, Study, TranscoderConfig
from polysem.engine.cache import SAECache, check_named
from polysem.engine.sources import Pins, is_local
from polysem.errors import ConfigError, MismatchError
from polysem.places import Places
from polysem.store.run import RunFolder

if TYPE_CHECKING:
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE
    from polysem.saes.transcoder import TranscoderSet
    from polysem.types import Site


class StudyContext:
    """Model, SAEs and features of one study in one run folder."""

    def __init__(self, study: Study, run: RunFolder, places: Places | None = None):
        self.study = study
        self.run = run
        self.places = places or run.places()
        self.pins = Pins.of(
            run.seen("features")[0]
        )  # a damaged manifest settles nothing, and its stage is made again
        self.gated = False

    @cached_property
    def model(self) -> "WhiteBoxModel":
        """The study's model, at the commit that the run folder has settled on."""
        from polysem.models import load_model

        wanted = self.study.model
        ref = self.places.find(wanted.ref, or_name=True)
        revision = wanted.revision or (None if is_local(ref) else self.pins.models.get(wanted.ref))
        model = load_model(ref, revision=revision, dtype=wanted.dtype, device=wanted.device)
        self.pins = replace(self.pins, models={**self.pins.models, wanted.ref: model.spec.revision})
        return model

    @cached_property
    def saes(self) -> SAECache:
        """The study's SAEs by label, in its order; each checked against the model where `gate` was called."""
        manifest = None if self.gated else self.run.seen("features")[0]
        known = manifest.facts.get("saes", {}) if manifest else {}
        cache = SAECache(self.study.saes, self._sae, known=known)
        check_named(self.study, cache)
        revisions = {facts["ref"]: facts["revision"] for facts in cache.facts.values()}
        self.pins = replace(self.pins, saes={**self.pins.saes, **revisions})
        self.gated = False  # each has passed; what is read again later is the same
        return cache

    @cached_property
    def vectors(self) -> "dict[str, SAE]":
        """The study's steering vectors by name, in its order, as dictionaries of one feature."""
        return given_vectors(
            self.places.settings(self.study), self.model, next(iter(self.saes.values())).writes
        )

    @cached_property
    def transcoders(self) -> "dict[str, TranscoderSet]":
        """The study's sets of transcoders by name, in its order, each checked against the model; of each the layers asked for."""
        there = self.places.settings(self.study)
        return {entry.name: given_transcoders(entry, self.model) for entry in there.transcoders}

    @cached_property
    def dictionaries(self) -> "Mapping[str, SAE]":
        """What plans steer along: the SAEs, read when they are asked for, and the vectors."""
        return ChainMap(self.vectors, self.saes) if self.study.vectors else self.saes  # pyright: ignore[reportArgumentType]  (is only read)

    @cached_property
    def features(self) -> "StoredTables":
        """The feature table of the run folder, and its map of pairs."""
        return StoredTables(self.run)

    def gate(self) -> None:
        """From now on SAEs are loaded with the model at hand, so that each must fit it and reconstruct it."""
        if "saes" in vars(self):
            raise RuntimeError("the SAEs are loaded already")
        self.gated = True

    def facts(self) -> dict[str, Any]:
        """What was found out about what has been loaded, as it goes into manifests."""
        found: dict[str, Any] = {}
        if "model" in vars(self):
            import torch

            found["model"] = {**asdict(self.model.spec), "ref": self.study.model.ref}
            found["threads"] = torch.get_num_threads()
        if "saes" in vars(self):
            found["saes"] = self.saes.facts
        if self.study.transcoders and "transcoders" in vars(self):
            found["transcoders"] = {
                name: {
                    "revision": one.provenance.revision,
                    "dialect": one.provenance.dialect,
                    **one.provenance.measured,
                }
                for name, one in self.transcoders.items()
            }
        return found

    def _sae(self, entry: SAEConfig) -> "SAE":
        from polysem.saes import load_sae
        from polysem.saes.load import as_trained_on

        ref, pin = self.places.find(entry.ref), self.pins.saes.get(entry.ref)
        if pin and ref.startswith("hub:") and "@" not in ref:
            ref = f"{ref}@{pin}"
        model: Any = self.model if self.gated else None
        sae = load_sae(
            ref,
            site=entry.site,
            model=model,
            max_fvu=entry.max_fvu,
            allow_other_model=entry.allow_other_model,
            prepend_bos=self.study.model.prepend_bos if entry.prepend_bos is None else entry.prepend_bos,
        )
        if sae.centre_input and model is None:  # whether it is right to centre, the model decides
            sae = as_trained_on(sae, self.model)
        if pin and ref.startswith(("hub:", "saelens:")) and sae.provenance.revision != pin:
            raise MismatchError(
                f"SAE {entry.ref} is now at revision {sae.provenance.revision}, but {self.run.root} was begun with {pin}",
                hint="choose a new --out, or pin the revision in the study: hub:OWNER/REPO/PATH@REVISION",
            )
        return sae


def given_vectors(study: Study, model: "WhiteBoxModel", site: "Site") -> "dict[str, SAE]":
    """The steering vectors of a study by name.

    Args:
        study: with every path found.
        model: whose sites they are added to.
        site: where they are, if neither file nor study says it.

    Raises:
        FormatError, ConfigError, SiteError: a file or site that cannot be.
        MismatchError: a vector that is not as wide as its site.
    """
    import torch

    from polysem.saes.load import as_dictionary, check_match
    from polysem.side_effects.directions import read_direction
    from polysem.types import Site

    found = {}
    for entry in study.vectors:
        own, vector = read_direction(Path(entry.ref), site=Site.parse(entry.site) if entry.site else None)
        found[entry.name] = as_dictionary(torch.from_numpy(vector), site=own or site, ref=entry.ref)
        check_match(found[entry.name], model)
    return found


def given_transcoders(entry: TranscoderConfig, model: Any) -> "TranscoderSet":
    """A set of transcoders of a study, the layers asked for.

    Args:
        entry: with its path found.
        model: that it must fit; None: it is only read.

    Raises:
        ConfigError: a layer that the set does not have.
        PolysemError: of `load_transcoders`.
    """
    from polysem.saes.transcoders import load_transcoders

    found = load_transcoders(
        entry.ref, reads=entry.reads, model=model, max_fvu=entry.max_fvu, allow_other_model=entry.allow_other_model
    )  # fmt: skip
    known = {one.reads.layer or 0: one for one in found.layers}
    if missing := sorted(set(entry.layers) - set(known)):
        raise ConfigError(
            f"transcoders {entry.ref} have no layer {missing[0]}; they have {', '.join(map(str, sorted(known)))}",
            hint="edit layers in [[transcoders]]",
        )
    return replace(found, layers=tuple(known[n] for n in entry.layers)) if entry.layers else found


class StoredTables:
    """The feature table of a run folder, all that `features.FeatureTable` has, and its map of pairs: each table read when it
    is first asked for. Running the trials needs neither contexts nor embeddings, which are the bulk of it."""

    def __init__(
        self, run: RunFolder, *, of_pairs: Sequence[str] | None = None, where: pc.Expression | None = None
    ):
        """`of_pairs`: columns of PAIRS that are read; `where`: rows of all tables; None: all."""
        self._run, self._embeddings = run, cache(run.embeddings)
        self._of_pairs, self._table = of_pairs, cache(partial(run.table, where=where))

    def only(self, label: str) -> "StoredTables":
        """The rows of one SAE, read by themselves."""
        return StoredTables(self._run, of_pairs=self._of_pairs, where=pc.equal(pc.field("sae"), label))

    @property
    def features(self) -> pa.Table:
        """FEATURES"""
        return self._table("features")

    @property
    def glosses(self) -> pa.Table:
        """GLOSSES"""
        return self._table("glosses")

    @property
    def contexts(self) -> pa.Table:
        """CONTEXTS"""
        return self._table("contexts")

    @property
    def clusters(self) -> pa.Table:
        """CLUSTERS"""
        return self._table("clusters")

    @property
    def embeddings(self) -> Mapping[str, np.ndarray]:
        """By SAE label, [n_features d_embed] float32 unit rows; zero without a gloss."""
        return self._embeddings()

    @property
    def pairs(self) -> pa.Table:
        """PAIRS"""
        return self._table("pairs", columns=self._of_pairs)

    @property
    def partners(self) -> pa.Table:
        """PARTNERS"""
        return self._table("partners")
