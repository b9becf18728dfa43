"""`load_transcoders`: a reference to a checked set of transcoders, and, with a model at hand, proof that they belong."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from polysem.boundary.door import Door
from polysem.boundary.files import exists, listing, local_path
from polysem.errors import FormatError, MismatchError, UnknownReferenceError
from polysem.positions import positions_of
from polysem.registry import zoo_path
from polysem.saes.fidelity import ActivationSource, sample_rows
from polysem.saes.load import check_match
from polysem.saes.transcoder import TranscoderSet
from polysem.saes.transcoders import circuit_tracer, decode_clt, gemma, saelens, sparsify
from polysem.saes.written import check_written

_DOOR = Door("transcoders", "expected zoo:NAME/SITE, zoo-real:NAME/SITE, or a folder or file that exists")
Loader = Callable[[str, Path], TranscoderSet]


def load_transcoders(
    ref: str | Path,
    *,
    reads: str | None = None,
    model: ActivationSource | None = None,
    max_fvu: float = 0.7,
    text: Sequence[str] | None = None,
    allow_other_model: bool = False,
) -> TranscoderSet:
    """The transcoders of a reference, one a layer.

    Args:
        ref: `zoo:NAME/SITE`, `zoo-real:NAME/SITE`, or a local folder or file of any dialect of this package.
        reads: point of the block that they read, where the files do not say it or say it wrongly: mlp.hook_in
            (behind the norm), hook_resid_mid (before it), ...
        model: the model they are meant for. If given, ids, widths and number of layers must fit, and what they write
            must reconstruct what the model writes (`saes.written`).
        max_fvu: the gate refuses above this, at any written site.
        text: what the gate measures on; default a built-in sample of English prose.
        allow_other_model: skip the comparison of model ids.

    Raises:
        UnknownReferenceError: the reference leads nowhere.
        FormatError: files that are missing, damaged, of no known dialect, or that ask for a rule that is not theirs.
        NumericsError: weights or activations that are not finite.
        MismatchError: they are for another model, width or number of layers.
        FidelityError: they do not write what they were loaded for; says which setting would.
    """
    path = _path(str(ref))
    found = _loader(path)(str(ref), path)
    if reads is not None:
        found = replace(found, layers=tuple(one.reading(reads) for one in found.layers))
    if model is None:
        return found
    for one in found.layers:
        for site in one.writes:
            check_match(one.face(site), model, compare_ids=not allow_other_model)
    if found.whole and len(found.layers) != model.spec.n_layers:
        raise MismatchError(
            f"{ref} holds transcoders of {len(found.layers)} layers, {model.spec.ref} has {model.spec.n_layers}",
            hint="fetch the files of the missing layers; a set of this kind has all of them",
        )
    first = found.layers[0].encoder
    rows = sample_rows(model, text, positions=positions_of(model, first), context=first.context_size)
    seen = check_written(found, model, rows, max_fvu=max_fvu)
    measured = {f"fvu {site}": one.fvu for site, one in seen.items()}
    return replace(found, provenance=replace(found.provenance, measured=measured))


def _path(ref: str) -> Path:
    kind, _, rest = ref.partition(":")
    if kind in ("zoo", "zoo-real"):
        return zoo_path("transcoders", ref)
    if kind in ("hub", "saelens", "hf"):
        where = rest.removeprefix("//")
        owner_name, inside = "/".join(where.split("/")[:2]), "/".join(where.split("/")[2:])
        raise UnknownReferenceError(
            f"transcoders are read from a folder, not from {ref!r}",
            hint=f"hf download {owner_name} --include '{inside + '/' if inside else ''}*' --local-dir transcoders",
        )
    path = local_path(ref, door=_DOOR)
    if not exists(path):
        raise UnknownReferenceError(f"there is no folder or file {ref!r} here", hint=_DOOR.hint)
    return path


def _loader(path: Path) -> Loader:
    """Who reads what lies there.

    Raises:
        FormatError: nobody does.
    """
    folder = path if path.is_dir() else path.parent
    names = {one.name for one in folder.iterdir()}
    if path.is_file() and path.suffix == ".npz":
        return gemma.load
    if "sae_weights.safetensors" in names and "cfg.json" in names:
        return saelens.load
    if decode_clt.speaks(folder):
        return decode_clt.load
    if "sae.safetensors" in names or any((one / "sae.safetensors").is_file() for one in folder.iterdir()):
        return sparsify.load
    if "config.yaml" in names or any(re.fullmatch(r"W_enc_\d+\.safetensors", n) for n in names):
        return circuit_tracer.load
    if gemma.speaks(folder):
        return gemma.load
    if any(re.fullmatch(r"layer_\d+\.safetensors", n) for n in names):
        return circuit_tracer.load
    raise FormatError(
        f"{path} holds no transcoders of a known format; it holds {listing(folder)}",
        hint="expected config.yaml, layer_N.safetensors, W_enc_N.safetensors, cfg.json + sae_weights.safetensors, "
        "params.npz, params.safetensors, or the folders of sparsify",
    )
