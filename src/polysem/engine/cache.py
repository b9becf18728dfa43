"""The SAEs of a study by label, read from their files when they are asked for, the last used ones kept.

A study in the paper's shape has dozens of dictionaries of 200 MB; work goes through it one SAE after the other,
so few need to be in memory. What is said about an SAE (`facts`) stays when its weights go.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polysem.config import SAEConfig, Study
from polysem.errors import ConfigError
from polysem.registry import did_you_mean

if TYPE_CHECKING:
    from polysem.saes import SAE
else:  # importing it would import torch
    SAE = Any

KEPT_BYTES = 2 << 30
"""weights that are kept; the SAE asked for last is kept whatever its size"""


class SAECache(Mapping[str, SAE]):
    """Read-only. Each lookup gives equal weights, not always the same object."""

    def __init__(
        self,
        entries: tuple[SAEConfig, ...],
        load: Callable[[SAEConfig], SAE],
        *,
        known: Mapping[str, Mapping[str, Any]] | None = None,
        keep: int = KEPT_BYTES,
    ):
        """Names the SAEs; those whose facts are not known are loaded, one after the other.

        Args:
            entries: of the study, in its order.
            load: gives the SAE of an entry.
            known: facts by label, as an earlier stage recorded them.
            keep: bytes of weights that may stay in memory.

        Raises:
            ConfigError: if the study gives one label twice.
            PolysemError: of `load`.
        """
        self._entries, self._load, self._keep = entries, load, keep
        self._kept: OrderedDict[int, SAE] = OrderedDict()
        facts = _recorded(entries, known or {})
        self._facts = facts or [facts_of(entry, self._at(k)) for k, entry in enumerate(entries)]
        self._index = {
            label: k for k, label in enumerate(sae_labels(entries, [f["site"] for f in self._facts]))
        }

    def __getitem__(self, label: str) -> SAE:
        return self._at(self._index[label])

    def __contains__(self, label: object) -> bool:
        return label in self._index  # Mapping's own would load

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """By label: ref, revision, dialect, site, d_sae, prepend_bos, and what the fidelity gate measured."""
        return {label: dict(self._facts[k]) for label, k in self._index.items()}

    def _at(self, k: int) -> SAE:
        if k in self._kept:
            self._kept.move_to_end(k)
            return self._kept[k]
        sae = self._kept[k] = self._load(self._entries[k])
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._keep:
            self._kept.popitem(last=False)
        return sae


def facts_of(entry: SAEConfig, sae: SAE) -> dict[str, Any]:
    """What manifests say about an SAE."""
    return {
        "ref": entry.ref,
        "revision": sae.provenance.revision,
        "dialect": sae.provenance.dialect,
        "site": str(sae.reads),
        "d_sae": sae.d_sae,
        "prepend_bos": sae.prepend_bos,
        "bos_stand_in": sae.bos_stand_in,
        "measured": dict(sae.provenance.measured),
    }


def check_named(study: Study, labels: Iterable[str]) -> None:
    """Raise ConfigError if a section of the study names a dictionary that it does not have."""
    known = list(labels)
    if strange := [name for name in study.joint.sites if name not in known]:
        raise ConfigError(
            f"joint.sites names {strange[0]!r}; the study's SAEs are {', '.join(known)}{did_you_mean(strange[0], known)}",
            hint="name labels of [[saes]]",
        )


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


def _recorded(
    entries: tuple[SAEConfig, ...], known: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """The facts of all entries in their order, if the record is of just these SAEs under these labels."""
    by_ref = {
        facts["ref"]: dict(facts)
        for facts in known.values()
        if {"prepend_bos", "bos_stand_in"} <= facts.keys()
    }
    if len(by_ref) != len(entries) or set(by_ref) != {entry.ref for entry in entries}:
        return None
    found = [by_ref[entry.ref] for entry in entries]
    return found if set(sae_labels(entries, [facts["site"] for facts in found])) == set(known) else None
