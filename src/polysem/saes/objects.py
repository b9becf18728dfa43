"""Dictionaries that are in memory already: an SAE of SAELens, one of dictionary_learning, or plain tensors.

Neither library is imported: an object is recognised by the module and name of its classes. Each is written into a folder of
its own dialect, which then passes the same reader and the same checks as a file does; so an object and its file are one SAE.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysem.errors import ConfigError, FormatError, PolysemError, UnknownReferenceError
from polysem.saes.dialects import dictionary_learning, saelens
from polysem.saes.source import WeightFiles

MEMORY = "memory"
"""reference of an SAE that came as an object"""
DIRECTIONS = "directions"
"""dialect of decoder rows without an encoder: each reads what it writes"""
_BIASES = {"b_enc": "d_sae", "b_dec": "d_in", "threshold": "d_sae"}
_RULES = {"subtract_b_dec": "apply_b_dec_to_input", "rescale_by_decoder_norm": "rescale_acts_by_decoder_norm"}
"""ours -> SAELens's"""


@contextmanager
def as_files(given: object) -> Iterator[WeightFiles]:
    """The folder of an object, as long as the block runs.

    Args:
        given: an object of SAELens or dictionary_learning; a mapping of W_dec [d_sae d_in] and perhaps W_enc [d_in d_sae],
            b_enc, b_dec, threshold (which makes it a JumpReLU SAE), k (an int, which makes it a TopK SAE), and the rules
            subtract_b_dec (else True) and rescale_by_decoder_norm (else False); or W_dec alone. Arrays of numpy are taken
            as tensors.

    Raises:
        UnknownReferenceError: if it is none of these.
        FormatError, NumericsError: of the reader, as for a file.
    """
    write = _writer(given)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sae"
        folder.mkdir()
        try:
            write(given, folder)
            yield WeightFiles(MEMORY, folder, f"the {_name(given)} in memory")
        except PolysemError as error:  # it is an object that the user gave, not a file
            said = str(error.args[0]).replace(f"{folder}/", "").replace(str(folder), "it")
            raise type(error)(f"the {_name(given)} in memory: {said}", hint=error.hint) from error


def directions_alone(given: object) -> bool:
    """Whether an object is decoder rows and nothing else."""
    return isinstance(given, Tensor | np.ndarray) or (isinstance(given, Mapping) and set(given) == {"W_dec"})


def _name(given: object) -> str:
    return f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}".removeprefix("builtins.")


def _writer(given: object) -> Callable[[Any, Path], None]:
    if isinstance(given, Tensor | np.ndarray):
        return lambda rows, folder: _tensors({"W_dec": rows}, folder)
    if isinstance(given, Mapping):
        return _tensors
    bases = [(base.__module__.partition(".")[0], base.__name__) for base in type(given).__mro__]
    if any(package == "sae_lens" for package, _ in bases):
        return _saelens
    if ("dictionary_learning", "Dictionary") in bases:
        return _dictionary_learning
    raise UnknownReferenceError(
        f"a {_name(given)} is no SAE that is known here; expected a reference (text or Path), an object of SAELens or "
        "dictionary_learning, or tensors",
        hint='give its tensors: load_sae({"W_enc": ..., "W_dec": ..., "b_enc": ..., "b_dec": ...}, site=...)',
    )


def _saelens(given: Any, folder: Path) -> None:
    # a training SAE becomes what it is used as: BatchTopK a JumpReLU with its threshold
    save = given.save_inference_model if hasattr(given, "save_inference_model") else given.save_model
    save(folder)


def _dictionary_learning(given: Any, folder: Path) -> None:
    about = {"trainer": {"dict_class": type(given).__name__}}
    torch.save(given.state_dict(), folder / dictionary_learning.WEIGHTS)
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")


def _tensors(given: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    known = {"W_dec", "W_enc", "k", *_BIASES, *_RULES}
    if not set(given) <= known or "W_dec" not in given:
        raise ConfigError(
            f"tensors of an SAE: there are {', '.join(sorted(map(str, given)))}; expected W_dec and any of "
            f"{', '.join(sorted(known - {'W_dec'}))}"
        )
    k = given.get("k")
    tensors = {name: _tensor(name, given[name]) for name in ("W_dec", "W_enc", *_BIASES) if name in given}
    rows = tensors["W_dec"]
    if rows.ndim != 2:
        raise FormatError(f"W_dec has shape {tuple(rows.shape)}, expected (d_sae, d_in)")
    if "W_enc" not in given and not directions_alone(given):
        raise ConfigError(
            f"{', '.join(sorted(set(given) - {'W_dec'}))} without W_enc: half of an encoder",
            hint="give W_enc, too",
        )
    tensors.setdefault("W_enc", rows.T.clone())  # of one row the transposed is the same memory
    for name in ("b_enc", "b_dec"):
        tensors.setdefault(name, torch.zeros(rows.shape[0 if _BIASES[name] == "d_sae" else 1]))
    architecture = "jumprelu" if "threshold" in tensors else "standard" if k is None else "topk"
    rules = {theirs: given[ours] for ours, theirs in _RULES.items() if ours in given}
    about = {"sae_lens_version": "6", "prepend_bos": True}
    config = {"architecture": architecture, "metadata": about, "k": k, **rules}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / saelens.WEIGHTS)
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} is a {type(value).__name__}, expected a tensor or array")
    return value
