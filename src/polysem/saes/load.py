"""`load_sae`: a reference to one checked SAE, and, with a model at hand, proof that the two belong
together."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from polysem.boundary.door import Door
from polysem.boundary.files import exists, local_path, steady
from polysem.errors import MismatchError, UnknownReferenceError
from polysem.positions import Tokenized, positions_of
from polysem.profiling import counts_as
from polysem.registry import check_links, zoo_path
from polysem.saes import releases
from polysem.saes.base import SAE
from polysem.saes.dialects import read_parts
from polysem.saes.fidelity import ActivationSource, sample_rows
from polysem.saes.gate import check_fidelity
from polysem.saes.known import VOCABULARIES, Shape, TokenVocabulary, shape_of, vocabulary_of
from polysem.saes.names import hub_id, same_model, site_of_name
from polysem.saes.objects import DIRECTIONS, MEMORY, as_files, directions_alone
from polysem.saes.parts import assemble
from polysem.saes.releases import ReleaseEntry
from polysem.saes.source import WeightFiles, read_json
from polysem.types import Site

_REFERENCE = Door(
    "SAE", "expected saelens:RELEASE/ID, hub:OWNER/REPO/PATH, zoo:NAME/SITE, or a path that exists"
)
log = logging.getLogger(__name__)

_SIZE_KEYS = (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))


@counts_as("start-up")
def load_sae(
    ref: str | Path | object,
    *,
    site: str | None = None,
    model: ActivationSource | None = None,
    max_fvu: float = 0.7,
    text: Sequence[str] | None = None,
    allow_other_model: bool = False,
    prepend_bos: bool | None = None,
) -> SAE:
    """The SAE of a reference.

    Args:
        ref: `saelens:RELEASE/ID`, `hub:OWNER/REPO/PATH[@REVISION]`, `zoo:NAME/SITE`, `zoo-real:NAME/SITE`, or a local
            folder or file; or what is in memory: an SAE of SAELens or dictionary_learning, a mapping of tensors (W_dec
            [d_sae d_in], W_enc [d_in d_sae], b_enc, b_dec, threshold, k; `saes.objects`), or W_dec alone. Directions
            alone read what they write, by a ReLU, and are not asked to reconstruct anything.
        site: hook point, where the source does not say it or says it wrongly.
        model: the model it is meant for. If given, model id and width must fit and the fidelity gate must
            pass.
        max_fvu: the gate refuses above this fraction of variance unexplained.
        text: what the gate measures on; default a built-in sample of English prose.
        allow_other_model: skip the comparison of model ids, e.g. to use the SAEs of a base model on its
            instruct version.
        prepend_bos: whether rows begin with BOS (of a tokenizer without BOS: with EOS); None: as it was trained.

    Raises:
        UnknownReferenceError: the reference leads nowhere.
        FormatError: files that are missing, damaged, of no known dialect, or no autoencoder of one site.
        NumericsError: weights or activations that are not finite.
        SiteError: `site` is no hook point, or the model does not have it.
        MismatchError: the SAE is for another model, or for another width; a BOS is asked for, and the tokenizer has
            neither BOS nor EOS.
        FidelityError: it does not reconstruct what it was loaded for; says which setting would.
    """
    sae = _from_ref(str(ref), site) if isinstance(ref, str | Path) else _from_object(ref, site)
    if prepend_bos is not None:
        sae = replace(sae, prepend_bos=prepend_bos, bos_stand_in="eos")
    if model is None:
        return sae
    check_match(sae, model, compare_ids=not allow_other_model)
    sae = as_trained_on(sae, model)
    if sae.provenance.dialect == DIRECTIONS:
        return sae
    positions = positions_of(model, sae)
    if prepend_bos and not positions.front:
        raise MismatchError(
            f"prepend_bos is true, but the tokenizer of {model.spec.ref} has neither BOS nor EOS",
            hint="set prepend_bos = false in [[saes]], or leave it out",
        )
    # Without a BOS of its own the tokenizer leaves open what was meant; the convention that is followed is said aloud.
    unclear = sae.prepend_bos and model.bos_id is None
    log.log(logging.WARNING if unclear else logging.INFO, "SAE %s: %s", sae.provenance.ref, positions.said)
    rows = sample_rows(model, text, positions=positions, context=sae.context_size)
    seen = check_fidelity(sae, model, rows, max_fvu=max_fvu)
    return replace(sae, provenance=replace(sae.provenance, measured=seen.facts()))


def _from_ref(ref: str, site: str | None) -> SAE:
    source = resolve(ref)
    with steady(*_files_of(source.path), door=_REFERENCE):  # the hash is of what is used
        sae = _assembled(source, site)
    return replace(sae, model_id=ref.split("/", 1)[0]) if ref.startswith("zoo:") else sae


def _from_object(given: object, site: str | None) -> SAE:
    with as_files(given) as source:
        sae = _assembled(source, site)
    if not directions_alone(given):
        return sae
    log.warning(
        "directions without an encoder: each reads what it writes, and nothing is asked of a reconstruction"
    )
    return replace(sae, provenance=replace(sae.provenance, dialect=DIRECTIONS))


def as_dictionary(vector: Float[Tensor, " d"], *, site: Site, ref: str) -> SAE:
    """A steering vector as a dictionary of one feature, which reads and writes at its site.

    Args:
        vector: as it is added at coefficient 1.
        ref: what it is called in manifests and errors.

    Raises:
        FormatError, NumericsError: if it is no vector, has no length, or is not finite.
    """
    with as_files(vector[None]) as source:
        sae = _assembled(source, str(site))
    return replace(sae, provenance=replace(sae.provenance, ref=ref, dialect=DIRECTIONS))


def _assembled(source: WeightFiles, site: str | None) -> SAE:
    parts = read_parts(source)
    trained_on = hub_id(parts.model_id) if parts.model_id else None
    sae = assemble(parts, source, site=site_of_name(site, model_id=trained_on) if site else None)
    if isinstance(parts.site, Site) and parts.site != sae.reads:
        log.warning("SAE %s: site = %s is asked for, but its files say %s", source.ref, sae.reads, parts.site)
    return sae


def as_trained_on(sae: SAE, model: ActivationSource) -> SAE:
    """The SAE with its input centred only where TransformerLens centres when it is asked to: it leaves models with RMS
    norms as they are, whatever the configuration says."""
    if sae.centre_input and model.spec.norm == "rms":
        log.warning(
            "SAE %s: its files ask for centred writing weights; %s has RMS norms, where TransformerLens does not centre",
            sae.provenance.ref,
            model.spec.ref,
        )
        return replace(sae, centre_input=False)
    return sae


def _files_of(path: Path) -> list[Path]:
    """A file, or the files of a folder that may be an SAE's; a wrong folder may hold very many."""
    return [path] if path.is_file() else list(islice((p for p in path.glob("*") if p.is_file()), 64))


def resolve(ref: str) -> WeightFiles:
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
    if kind in ("zoo", "zoo-real"):
        path = zoo_path("saes", ref)
        return WeightFiles(ref=ref, path=path, label=str(path))
    path = local_path(ref, door=_REFERENCE)
    if path.is_symlink():
        check_links(path.parent, [path.name])
    if not exists(path):
        raise UnknownReferenceError(
            f"there is no folder or file {ref!r} here ({Path.cwd()}), and it is no reference of another kind",
            hint="expected saelens:RELEASE/ID, hub:OWNER/REPO/PATH, zoo:NAME/SITE, zoo-real:NAME/SITE, or a path that exists",
        )
    return WeightFiles(ref=ref, path=path, label=str(path.resolve()))


def check_match(sae: SAE, model: ActivationSource, *, compare_ids: bool = True) -> None:
    """Raise MismatchError if the SAE was trained on another model or another width than `model` has at its
    site.

    Ids are compared where both are known. A local folder has none: what is known of the SAE's model by its name (family,
    layers, width), and what the folder's configuration calls itself, are compared with it.
    """
    name = model.spec.named if model.spec.ref == MEMORY else model.spec.ref
    other = None
    if compare_ids and sae.model_id and name:
        if _is_local(name):
            other = _unlike(sae.model_id, model)
        elif not same_model(sae.model_id, name):
            other = "another id"
    if other:
        raise MismatchError(
            f"SAE {sae.provenance.ref} was trained on {sae.model_id}, but the model is {name}: {other}",
            hint=f"load_model({sae.model_id!r}); or, if you mean it, allow_other_model = true (in the study, or as an argument)",
        )
    for does, site, own in (("reads", sae.reads, sae.d_in), ("writes", sae.writes, sae.d_out)):
        width = model.site_width(site)
        if width != own:
            raise MismatchError(
                f"SAE {sae.provenance.ref} {does} {own} numbers, but {site} of {model.spec.ref} is {width} wide",
                hint="check the model, and the site that the SAE was trained on",
            )


def _is_local(ref: str) -> bool:
    """Whether a model's reference is a place on the disk, so that it says nothing about whose weights lie there."""
    if ref.startswith(("zoo:", "package:")):
        return False
    return ref.startswith("gguf:") or ref.endswith(".gguf") or exists(local_path(ref))


def _unlike(model_id: str, model: ActivationSource) -> str | None:
    """In what a local model is not the one that the SAE names; None if nothing speaks against it."""
    spec, place = model.spec, local_path(model.spec.ref.removeprefix("gguf:")).resolve()
    trained_at = local_path(model_id, door=_REFERENCE)
    if trained_at.is_dir():
        return None if trained_at.resolve() == place else f"another folder than {trained_at}"
    known, own = _shape(model_id), Shape(spec.family, spec.n_layers, spec.d_model)
    if known and known != own:
        return f"{own.family} of {own.n_layers} layers, width {own.d_model}, not {known.family} of {known.n_layers}, {known.d_model}"
    tokens = _vocabulary(model_id, known)
    if tokens and isinstance(model, Tokenized) and not tokens.fits(model.tokenizer.get_vocab()):
        return f"its tokenizer does not have the {tokens.n:,} tokens of {model_id}"
    named = spec.named if "/" in spec.named or shape_of(spec.named) else ""
    if named and not same_model(model_id, named):
        return f"its configuration says {named}"
    if known is None and not named and not same_model(model_id, place.name):
        log.warning(
            "the SAE was trained on %s; whether %s holds that model cannot be told: only the width was compared",
            model_id,
            spec.ref,
        )
    return None


def _shape(model_id: str) -> Shape | None:
    if not model_id.startswith("zoo:"):
        return shape_of(model_id)
    config = read_json(zoo_path("models", model_id.removeprefix("zoo:")) / "config.json")
    layers, width = (next(config[key] for key in keys if key in config) for keys in _SIZE_KEYS)
    return Shape(config["model_type"], layers, width)


def _vocabulary(model_id: str, known: Shape | None) -> TokenVocabulary | None:
    if not model_id.startswith("zoo:"):
        return VOCABULARIES.get(known.family) if known else None
    told = read_json(zoo_path("models", model_id.removeprefix("zoo:")) / "tokenizer.json")
    vocab = told["model"]["vocab"]  # BPE: token -> id; Unigram: [token, score] by id
    return vocabulary_of(
        vocab if isinstance(vocab, dict) else {token: n for n, (token, _) in enumerate(vocab)}
    )


def _parse_hub(ref: str, rest: str) -> ReleaseEntry | tuple[str, str, str | None]:
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


def _from_hub(ref: str, where: ReleaseEntry | tuple[str, str, str | None]) -> WeightFiles:
    from polysem.saes.hub import fetch

    entry = where if isinstance(where, ReleaseEntry) else None
    repo, path, revision = (entry.repo, entry.path, entry.revision) if entry else where  # pyright: ignore[reportGeneralTypeIssues]  (a tuple where it is no ReleaseEntry)
    fetched = fetch(repo, path, revision=revision)
    return WeightFiles(
        ref=ref, path=fetched.path, label=f"{repo}/{path}".rstrip("/"), revision=fetched.commit, entry=entry
    )
