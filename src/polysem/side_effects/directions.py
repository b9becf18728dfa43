"""Any direction that people steer along, and files that steering tools read.

A file names what it holds in its own way; a layer number N is always the output of block N (`blocks.N.hook_resid_post`), as
in repeng, steering-vectors, EasySteer and llama.cpp's control vectors:

    .safetensors  one tensor, or one for each layer, under a site, `direction.N`, or a name that ends in a number
    .npy          one vector
    .gguf         a control vector: `direction.N`
    .pt .pth      a vector, or vectors by layer, also under `layer_activations` (steering-vectors); nothing that runs code
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polysem.boundary.door import Door, brief
from polysem.boundary.tensors import read_control_vector, read_npy, read_safetensors, read_torch
from polysem.corpus import one_a_line
from polysem.errors import ConfigError, FormatError, MismatchError
from polysem.models.base import WhiteBoxModel
from polysem.positions import PositionPolicy
from polysem.store import io
from polysem.types import Site

STREAM = "hook_resid_post"
MIN_TEXTS = 2
"""texts of each side of a difference of means"""
_DOOR = Door(
    "steering vector",
    "save it as .npy or .safetensors: one vector as wide as the model",
    missing=FormatError,
)
_GGUF_STRING, _GGUF_UINT32, _GGUF_FLOAT32, _GGUF_ALIGNMENT = 8, 4, 0, 32
_LAYER = re.compile(r"(?:^|[._-])(\d{1,5})$")


@dataclass(frozen=True)
class Direction:
    """A direction at a site."""

    name: str
    """unique among those that are looked at together"""
    kind: str
    """feature | texts | models | file | given (a tensor) | repaired | isotropic"""
    site: Site
    vector: Float[np.ndarray, " d"]
    """as its tool adds it at coefficient 1"""
    tokens: tuple[int, ...] = ()
    """what it is meant to move; empty where nobody said"""
    sae: str | None = None
    feature: int | None = None
    also: tuple[Site, ...] = ()
    """further sites that are written at once: the vector holds the stretch of each, as wide as the first, one behind another"""

    def __post_init__(self) -> None:
        if not np.isfinite(self.vector).all() or not np.linalg.norm(self.vector) > 0:
            raise MismatchError(
                f"{self.name}: the vector has length {np.linalg.norm(self.vector):g}, expected a finite one above 0",
                hint="choose another feature or file",
            )

    @property
    def norm(self) -> float:
        """Length of the vector."""
        return float(np.linalg.norm(self.vector))

    @property
    def unit(self) -> Float[np.ndarray, " d"]:
        """The vector at length 1."""
        return self.vector / self.norm


def read_direction(path: Path, *, site: Site | None = None) -> tuple[Site | None, Float[np.ndarray, " d"]]:
    """The vector of a file, and its site where file or caller says it.

    Args:
        path: .safetensors, .npy, .gguf, .pt or .pth.
        site: which, of a file with several; of a file that says none, where it belongs.

    Raises:
        FormatError: not a file of that kind, or not of vectors.
        ConfigError: several vectors and no site, or none at that site.
    """
    found = {_site_of(name): vector for name, vector in _vectors(path).items()}
    told = ", ".join(sorted(str(s) for s in found if s is not None)) or "a vector without a site"
    if len(found) == 1:
        ((own, vector),) = found.items()
        if site is not None and own not in (None, site):
            raise ConfigError(f"{path} holds {told}, not {site}", hint="leave --site out")
        return own or site, vector
    if site is None or site not in found:
        asked = "no site is given" if site is None else f"not {site}"
        raise ConfigError(f"{path} holds {told}; {asked}", hint="give one of them as --site")
    return site, found[site]


def _vectors(path: Path) -> dict[str, Float[np.ndarray, " d"]]:
    """Vectors by name."""
    content: Mapping[Any, Any]
    match path.suffix:
        case ".safetensors":
            content = read_safetensors(path, door=_DOOR)
        case ".npy":
            content = {"": read_npy(path, door=_DOOR)}
        case ".gguf":
            content = read_control_vector(path, door=_DOOR)
        case ".pt" | ".pth":
            content = read_torch(path, door=_DOOR, alone=True)
            content = content.get("layer_activations", content)
        case _:
            raise _DOOR.refuse(path, "expected .safetensors, .npy, .gguf, .pt or .pth")
    found = {}
    tensors = content.items() if isinstance(content, Mapping) else ()
    for name, value in tensors:
        if not isinstance(value, torch.Tensor):
            continue
        vector = value.detach().squeeze()
        if vector.ndim != 1 or not vector.is_floating_point():
            shape = " x ".join(map(str, value.shape))
            raise _DOOR.refuse(path, f"{brief(str(name))} is [{shape}] of {value.dtype}, expected one vector")
        found[str(name)] = vector.double().numpy()
    if not found:
        raise _DOOR.refuse(path, "it holds no vector")
    return found


def _site_of(name: str) -> Site | None:
    if ".hook_" in name:
        return Site.parse(name)
    layer = _LAYER.search(name)
    return Site(int(layer[1]), STREAM) if layer else None


def difference_of_means(
    model: WhiteBoxModel, more: Sequence[str], less: Sequence[str], *, site: Site, positions: PositionPolicy
) -> Float[np.ndarray, " d"]:
    """Mean activation on some texts minus that on others, over all tokens but the first and massive ones of each; a text
    counts once, however long.

    Raises:
        ConfigError: with fewer than two texts on a side, or a text that has no token to count.
    """
    for side, texts in (("more", more), ("less", less)):
        if len(texts) < MIN_TEXTS:
            raise ConfigError(
                f"{len(texts)} texts of {side}; expected at least {MIN_TEXTS}, one a line",
                hint="polysem side-effects STUDY.toml --more MORE.txt --less LESS.txt",
            )
    means = [
        np.mean([_mean(model, text, site, positions) for text in texts], axis=0) for texts in (more, less)
    ]
    return means[0] - means[1]


def difference_of_models(
    model: WhiteBoxModel,
    other: WhiteBoxModel,
    prompts: Sequence[Sequence[int]],
    *,
    site: Site,
    positions: PositionPolicy,
) -> Float[np.ndarray, " d"]:
    """Mean activation of another model minus that of a model, on the same prompts; tokens and prompts count as in
    `difference_of_means`.

    Raises:
        MismatchError: models of other vocabularies, or of another width at the site.
    """
    for what, mine, its in (
        ("tokens", model.spec.d_vocab, other.spec.d_vocab),
        (f"coordinates at {site}", model.site_width(site), other.site_width(site)),
    ):
        if mine != its:
            raise MismatchError(
                f"{other.spec.ref} has {its} {what}, {model.spec.ref} has {mine}",
                hint="compare models of one architecture and tokenizer, such as a base model and its finetune",
            )
    each = [_mean_of(other, ids, site, positions) - _mean_of(model, ids, site, positions) for ids in prompts]
    return np.mean(each, axis=0)


def _mean(model: WhiteBoxModel, text: str, site: Site, positions: PositionPolicy) -> Float[np.ndarray, " d"]:
    ids = positions.row(model.tokenize(text, prepend_bos=False))[: model.spec.n_ctx]
    return _mean_of(model, ids, site, positions, said=text)


def _mean_of(
    model: WhiteBoxModel, ids: Sequence[int], site: Site, positions: PositionPolicy, *, said: str = ""
) -> Float[np.ndarray, " d"]:
    rows = torch.tensor([list(ids)], device=model.spec.device)
    seen = model.capture(rows, [site])[site][0].double().cpu().numpy() if len(ids) > 1 else np.empty((0, 1))
    counted = seen[positions.counted(len(seen))]
    kept = counted[positions.ordinary(np.linalg.norm(counted, axis=1))]
    if not len(kept):
        raise ConfigError(
            f"a text has no token that counts: {(said or model.detokenize(ids))[:40]!r}",
            hint="write texts of several words",
        )
    return kept.mean(axis=0)


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line, plain or JSON; blank ones are left out. Raises as `corpus.one_a_line`."""
    return [text.strip() for _, text in one_a_line(path, what="file of texts") if text.strip()]


def write_direction(folder: Path, stem: str, direction: Direction, *, model_type: str) -> dict[str, str]:
    """Write a direction as other tools read it; gives the sha256 of every file by its name.

    STEM.safetensors holds the vector under the name of its site. STEM.gguf, where the site is the output of a block but the
    first (llama.cpp steers no earlier), is a control vector for llama.cpp, EasySteer (algorithm `direct`) and repeng: at
    strength 1 they add the vector to that block's output.
    """
    vector = direction.vector.astype(np.float32)
    tensors = f"{stem}.safetensors"
    written = {tensors: io.write_arrays(folder / tensors, {str(direction.site): vector})}
    if direction.site.point == STREAM and direction.site.layer:
        path = folder / f"{stem}.gguf"
        with io.replacing(path) as stream:
            stream.write(_control_vector(direction.site.layer, vector, model_type))
        written[path.name] = io.sha256(path)
    return written


def _control_vector(layer: int, vector: Float[np.ndarray, " d"], model_type: str) -> bytes:
    """A GGUF file, version 3, of one tensor: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    told = (("general.architecture", "controlvector"), ("controlvector.model_hint", model_type))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(told) + 1)
    head += b"".join(text(key) + struct.pack("<I", _GGUF_STRING) + text(value) for key, value in told)
    head += text("controlvector.layer_count") + struct.pack("<II", _GGUF_UINT32, 1)
    head += text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(vector), _GGUF_FLOAT32, 0)
    return head + bytes(-len(head) % _GGUF_ALIGNMENT) + vector.astype("<f4").tobytes()
