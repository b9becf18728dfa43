"""What stages work with, loaded when first asked for and once: the model, the SAEs, the feature table."""

from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polysem.config import SAEConfig, Study
from polysem.errors import ConfigError, MismatchError, StoreError
from polysem.store.run import RunFolder
from polysem.study.sources import Pins

if TYPE_CHECKING:
    from polysem.features import FeatureTable
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE


class Bench:
    """Model, SAEs and features of one study in one run folder."""

    def __init__(self, study: Study, run: RunFolder):
        self.study = study
        self.run = run
        self.pins = _pins(run)
        self.gated = False

    @cached_property
    def model(self) -> "WhiteBoxModel":
        """The study's model, at the commit that the run folder has settled on."""
        from polysem.models import load_model

        wanted = self.study.model
        revision = wanted.revision or (None if _is_local(wanted.ref) else self.pins.models.get(wanted.ref))
        model = load_model(wanted.ref, revision=revision, dtype=wanted.dtype, device=wanted.device)
        self.pins = replace(self.pins, models={**self.pins.models, wanted.ref: model.spec.revision})
        return model

    @cached_property
    def saes(self) -> "dict[str, SAE]":
        """The study's SAEs by label, in its order; checked against the model where it is already loaded."""
        loaded = [self._sae(entry) for entry in self.study.saes]
        self.pins = replace(
            self.pins,
            saes={
                **self.pins.saes,
                **{
                    entry.ref: sae.provenance.revision
                    for entry, sae in zip(self.study.saes, loaded, strict=True)
                },
            },
        )
        return dict(zip(sae_labels(self.study.saes, [str(sae.site) for sae in loaded]), loaded, strict=True))

    @cached_property
    def features(self) -> "FeatureTable":
        """The feature table of the run folder."""
        from polysem.features import FeatureTable

        return FeatureTable(**self.run.tables("features"), embeddings=self.run.embeddings())

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
            found["saes"] = {
                label: {
                    "ref": entry.ref,
                    "revision": sae.provenance.revision,
                    "dialect": sae.provenance.dialect,
                    "site": str(sae.site),
                    "d_sae": sae.d_sae,
                    "measured": dict(sae.provenance.measured),
                }
                for entry, (label, sae) in zip(self.study.saes, self.saes.items(), strict=True)
            }
        return found

    def _sae(self, entry: SAEConfig) -> "SAE":
        from polysem.saes import load_sae

        ref, pin = entry.ref, self.pins.saes.get(entry.ref)
        if pin and ref.startswith("hub:") and "@" not in ref:
            ref = f"{ref}@{pin}"
        model: Any = self.model if self.gated else None
        sae = load_sae(
            ref,
            site=entry.site,
            model=model,
            max_fvu=entry.max_fvu,
            allow_other_model=entry.allow_other_model,
        )
        if pin and ref.startswith(("hub:", "saelens:")) and sae.provenance.revision != pin:
            raise MismatchError(
                f"SAE {entry.ref} is now at revision {sae.provenance.revision}, but {self.run.root} was begun with {pin}",
                hint="choose a new --out, or pin the revision in the study: hub:OWNER/REPO/PATH@REVISION",
            )
        return sae


def sae_labels(entries: tuple[SAEConfig, ...], sites: list[str]) -> list[str]:
    """The names of SAEs in tables: the label of the study, or the site; a repeated site gets -2, -3, ...

    Raises:
        ConfigError: if the study gives one label twice.
    """
    given = [entry.label for entry in entries if entry.label]
    if repeated := sorted({label for label in given if given.count(label) > 1}):
        raise ConfigError(
            f"two SAEs have the label {repeated[0]!r}; expected each label once", hint="edit [[saes]]"
        )
    taken, labels = set(given), []
    for entry, site in zip(entries, sites, strict=True):
        label, n = entry.label or site, 1
        while not entry.label and label in taken:
            n += 1
            label = f"{site}-{n}"
        taken.add(label)
        labels.append(label)
    return labels


def _pins(run: RunFolder) -> Pins:
    try:
        return Pins.of(run.manifest("features"))
    except StoreError:
        return Pins({}, {})  # a damaged manifest pins nothing, and its stage is made again


def _is_local(ref: str) -> bool:
    from pathlib import Path

    return ref.startswith("zoo:") or Path(ref).expanduser().is_dir()
