"""`load_sae`: a reference to one checked SAE, and, with a model at hand, proof that the two belong
together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from polysem.errors import MismatchError, UnknownReferenceError
from polysem.registry import zoo_path
from polysem.saes import releases
from polysem.saes.base import SAE
from polysem.saes.dialects import read_parts
from polysem.saes.fidelity import ActivationSource, check_fidelity, sample_rows
from polysem.saes.names import same_model, site_of_hook
from polysem.saes.parts import assemble
from polysem.saes.source import Source


def load_sae(
    ref: str,
    *,
    site: str | None = None,
    model: ActivationSource | None = None,
    max_fvu: float = 0.7,
    text: Sequence[str] | None = None,
    allow_other_model: bool = False,
) -> SAE:
    """The SAE of a reference.

    Args:
        ref: `saelens:RELEASE/ID`, `hub:OWNER/REPO/PATH[@REVISION]`, `zoo:NAME/SITE`, or a local folder or
        file.
        site: hook point, where the source does not say it or says it wrongly.
        model: the model it is meant for. If given, model id and width must fit and the fidelity gate must
        pass.
        max_fvu: the gate refuses above this fraction of variance unexplained.
        text: what the gate measures on; default a built-in sample of English prose.
        allow_other_model: skip the comparison of model ids, e.g. to use the SAEs of a base model on its
        instruct version.

    Raises:
        UnknownReferenceError: the reference leads nowhere.
        FormatError: files that are missing, damaged, of no known dialect, or no autoencoder of one site.
        NumericsError: weights or activations that are not finite.
        SiteError: `site` is no hook point, or the model does not have it.
        MismatchError: the SAE is for another model, or for another width.
        FidelityError: it does not reconstruct what it was loaded for; says which setting would.
    """
    source = resolve(ref)
    sae = assemble(read_parts(source), source, site=site_of_hook(site) if site else None)
    if ref.startswith("zoo:"):
        sae = replace(sae, model_id=ref.split("/", 1)[0])
    if model is None:
        return sae
    check_match(sae, model, compare_ids=not allow_other_model)
    rows = sample_rows(model, text, prepend_bos=sae.prepend_bos, context=sae.context_size)
    seen = check_fidelity(sae, model, rows, max_fvu=max_fvu)
    measured = {"fvu": seen.fvu, "l0": seen.l0, "n_tokens": float(seen.n_tokens)}
    return replace(sae, provenance=replace(sae.provenance, measured=measured))


def resolve(ref: str) -> Source:
    """Where the files of a reference are, after downloading them if they are on the Hub.

    Raises:
        UnknownReferenceError: the reference leads nowhere.
        FormatError: a path on the Hub holds no SAE.
    """
    kind, _, rest = ref.partition(":")
    if kind == "saelens":
        release, _, sae_id = rest.partition("/")
        return _from_hub(ref, releases.find(release, sae_id))
    if kind == "hub":
        return _from_hub(ref, _parse_hub(ref, rest))
    if kind == "zoo":
        path = zoo_path("saes", rest)
        return Source(ref=ref, path=path, label=str(path))
    path = Path(ref).expanduser()
    if not path.exists():
        raise UnknownReferenceError(
            f"there is no folder or file {ref!r} here ({Path.cwd()}), and it is no reference of another kind",
            hint="expected saelens:RELEASE/ID, hub:OWNER/REPO/PATH, zoo:NAME/SITE, or a path that exists",
        )
    return Source(ref=ref, path=path, label=str(path.resolve()))


def check_match(sae: SAE, model: ActivationSource, *, compare_ids: bool = True) -> None:
    """Raise MismatchError if the SAE was trained on another model or another width than `model` has at its
    site.

    Ids are compared where both are known: a model loaded from a local folder has none, and only the width
    speaks.
    """
    name = model.spec.ref
    named = name not in ("", "memory") and (name.startswith("zoo:") or not Path(name).exists())
    if compare_ids and named and sae.model_id and not same_model(sae.model_id, model.spec.ref):
        raise MismatchError(
            f"SAE {sae.provenance.ref} was trained on {sae.model_id}, but the model is {model.spec.ref}",
            hint=f"load_model({sae.model_id!r}); or, if you mean it, allow_other_model = true (in the study, or as an argument)",
        )
    width = model.site_width(sae.site)
    if width != sae.d_in:
        raise MismatchError(
            f"SAE {sae.provenance.ref} reads {sae.d_in} numbers, but {sae.site} of {model.spec.ref} is "
            f"{width} wide",
            hint="check the model, and the site that the SAE was trained on",
        )


def _parse_hub(ref: str, rest: str) -> releases.Entry | tuple[str, str, str | None]:
    address, _, revision = rest.partition("@")
    owner, _, tail = address.strip("/").partition("/")
    name, _, path = tail.partition("/")
    if not owner or not name:
        raise UnknownReferenceError(
            f"{ref!r} names no repository", hint="expected hub:OWNER/REPO/PATH, with @REVISION if wanted"
        )
    entry = releases.find_by_path(f"{owner}/{name}", path)
    if entry is None:
        return f"{owner}/{name}", path, revision or None
    return replace(entry, revision=revision) if revision else entry


def _from_hub(ref: str, where: releases.Entry | tuple[str, str, str | None]) -> Source:
    from polysem.saes.hub import fetch

    entry = where if isinstance(where, releases.Entry) else None
    repo, path, revision = (entry.repo, entry.path, entry.revision) if entry else where  # pyright: ignore[reportGeneralTypeIssues]  (a tuple where it is no Entry)
    fetched = fetch(repo, path, revision=revision)
    return Source(
        ref=ref, path=fetched.path, label=f"{repo}/{path}".rstrip("/"), revision=fetched.commit, entry=entry
    )
