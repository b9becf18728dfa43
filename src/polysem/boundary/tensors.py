"""Tensors out of foreign files: nothing is run, nothing stays mapped, nothing is larger than the file that holds it.

Every tensor is copied: a file that is overwritten while a study runs changes no number of that study, and the hash that was
taken in the same `steady` block is of the bytes that were read.
"""

import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from polysem.boundary.door import Door, brief, telling
from polysem.boundary.files import FREE, RATIO, open_regular, regular, steady
from polysem.boundary.text import check_kind
from polysem.errors import FormatError, UnknownReferenceError

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_HINT = (
    "convert it where it was made: safetensors.torch.save_file(state_dict, 'sae_weights.safetensors')"
)
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")
TENSORS = Door("weights", "download the file again, whole", missing=FormatError)
_NUMBERS = "fiu"
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""bytes of a plain value of GGUF by the number of its type; 8 is a text and 9 an array"""
_GGUF_ITEMS = 1 << 22
"""items of an array of GGUF and entries of its lists: the largest vocabulary is a quarter of a million"""


def read_safetensors(path: Path, *, door: Door = TENSORS) -> "dict[str, Tensor]":
    """All tensors of a safetensors file, copied out of it.

    Raises:
        the door's errors: absent, a pointer or a page, truncated, or something else.
    """
    from safetensors import safe_open

    _look(path, door)
    with (
        steady(path, door=door),
        telling(door, path, doing=_whole(path, "safetensors file")),
        safe_open(path, framework="pt") as file,
    ):
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)


def check_safetensors(path: Path, *, door: Door = TENSORS) -> None:
    """Refuses what is no whole safetensors file: its header says how its tensors fill it. Raises the door's errors."""
    from safetensors import safe_open

    _look(path, door)
    with telling(door, path, doing=_whole(path, "safetensors file")), safe_open(path, framework="pt"):
        pass


def map_npy(path: Path, *, door: Door = TENSORS) -> np.ndarray:
    """The array of a NumPy file, read where it is used; objects are not read.

    Raises:
        the door's errors: as `files.regular`, damaged or cut, or no such file.
    """
    regular(path, door=door)
    with telling(door, path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(path: Path, *, door: Door = TENSORS) -> "dict[str, Tensor]":
    """All arrays of a numpy archive, as tensors. Pickled arrays, and any that are not of real numbers, are refused.

    Raises:
        the door's errors.
    """
    import torch

    _look(path, door, archive=True)
    found = {}
    with (
        steady(path, door=door),
        telling(door, path, doing=_whole(path, "numpy archive of numbers")),
        open_regular(path, door=door) as stream,
        zipfile.ZipFile(stream) as archive,
    ):
        _check_ratio(archive, path, door)
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            found[name] = torch.from_numpy(_parsed(archive.read(entry), entry.filename, path, door))
    return found


def read_npy(path: Path, *, door: Door = TENSORS) -> "Tensor":
    """The array of a .npy file, as a tensor; pickles, and what is not of real numbers, are refused.

    Raises:
        the door's errors.
    """
    import torch

    _look(path, door)
    with steady(path, door=door), telling(door, path, doing=_whole(path, "numpy array of numbers")):
        return torch.from_numpy(_parsed(path.read_bytes(), path.name, path, door))


def _parsed(content: bytes, name: str, path: Path, door: Door) -> np.ndarray:
    """The array of the bytes of a .npy file."""
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    start = stream.tell()
    if dtype.hasobject or dtype.kind not in _NUMBERS:
        raise door.refuse(
            path, f"{brief(name)} holds {brief(str(dtype))}, expected real numbers (no pickles)"
        )
    n = 1
    for size in shape:
        n *= size
    if n < 0 or n * dtype.itemsize != len(content) - start:
        raise door.refuse(path, f"{brief(name)} says {shape} of {dtype} but has {len(content) - start} bytes")
    values = np.frombuffer(content, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    return np.array(values, dtype=dtype.newbyteorder("="), order="C")


def read_control_vector(path: Path, *, door: Door = TENSORS) -> "dict[str, Tensor]":
    """The tensors of a control vector in GGUF, by name: `direction.N` is added to what block N gives out.

    Raises:
        the door's errors: truncated, no control vector, quantised; UnknownReferenceError without the package gguf.
    """
    import torch

    _look(path, door)
    try:
        import gguf
    except ImportError as error:
        raise UnknownReferenceError(
            f"{path} needs the Python package gguf, which is not installed",
            hint='pip install "polysem[gguf]"',
        ) from error
    found: dict[str, Tensor] = {}
    check_gguf(path, door=door)
    with steady(path, door=door), telling(door, path, doing=_whole(path, "GGUF file")):
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        if (kind := "" if field is None else str(field.contents())) != "controlvector":
            raise door.refuse(path, f"it is a {brief(kind)} file, expected a controlvector")
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in ("F32", "F16"):
                raise door.refuse(
                    path, f"{brief(tensor.name)} is {tensor.tensor_type.name}, expected F32 or F16"
                )
            found[tensor.name] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    return found


def check_gguf(path: Path, *, door: Door = TENSORS) -> None:
    """Refuses a GGUF file whose lists are longer than the file, before the package gguf reads it: that counts to whatever
    number stands there. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        the door's errors: absent, truncated, or no GGUF file.
    """
    _look(path, door)
    with telling(door, path, doing=_whole(path, "GGUF file")), open_regular(path, door=door) as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version, n_tensors, n_told = struct.unpack("<IQQ", stream.read(20))
        if version not in (2, 3) or max(n_tensors, n_told) > _GGUF_ITEMS:
            raise ValueError(f"version {version}, {n_told} settings, {n_tensors} tensors")
        for _ in range(n_told):
            _gguf_skip(stream, 8)
            _gguf_skip(stream, _gguf_number(stream, 4))
        for _ in range(n_tensors):
            _gguf_skip(stream, 8)
            n_dims = _gguf_number(stream, 4)
            if n_dims > 8:
                raise ValueError(f"a tensor of {n_dims} dimensions")
            _gguf_bytes(stream, 8 * n_dims + 4 + 8)


def _gguf_skip(stream: IO[bytes], kind: int) -> None:
    if kind == 8:
        _gguf_bytes(stream, _gguf_number(stream, 8))
    elif kind == 9:
        inner, n = _gguf_number(stream, 4), _gguf_number(stream, 8)
        if n > _GGUF_ITEMS or inner == 9:
            raise ValueError(f"an array of {n} items of type {inner}")
        if inner != 8:
            _gguf_bytes(stream, n * _GGUF_SIZES[inner])
        else:
            for _ in range(n):
                _gguf_skip(stream, inner)
    else:
        _gguf_bytes(stream, _GGUF_SIZES[kind])


def _gguf_number(stream: IO[bytes], n_bytes: int) -> int:
    return int.from_bytes(_gguf_bytes(stream, n_bytes), "little")


def _gguf_bytes(stream: IO[bytes], n: int) -> bytes:
    if n > _GGUF_ITEMS * 8 or len(found := stream.read(n)) < n:
        raise EOFError("it ends in the middle of its header")
    return found


def read_torch(path: Path, *, door: Door = TENSORS, alone: bool = False) -> dict[Any, Any]:
    """The state dict of a `.pt` or `.pth` file, restricted to tensors and plain values.

    Args:
        path: the file.
        door: names it in errors.
        alone: a file of nothing but a tensor is taken, under the name "".

    Raises:
        the door's errors: absent, truncated, would have to run code to be read, holds no dict, or tensors
            larger than the file.
    """
    import torch

    size = _look(path, door, archive=True)
    if path.suffix in PICKLES:
        raise door.refuse(path, "it is a pickle: reading it could run any code", hint=SAFETENSORS_HINT)
    with (
        steady(path, door=door),
        telling(door, path, doing=_whole(path, "torch file of tensors and plain values")),
        open_regular(path, door=door) as stream,
    ):
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                _check_ratio(archive, path, door)
        stream.seek(0)
        try:
            value = torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
        except pickle.UnpicklingError as error:
            said = brief((str(error).strip() or "no pickle").splitlines()[0])
            raise door.refuse(
                path,
                "it is truncated, or holds objects other than tensors and plain values, which could run any code when "
                f"read: {said}",
                hint=SAFETENSORS_HINT,
            ) from error
    if alone and isinstance(value, torch.Tensor):
        value = {"": value}
    if not isinstance(value, dict):
        raise door.refuse(
            path, f"it holds a {type(value).__name__}, expected a state dict", hint=SAFETENSORS_HINT
        )
    _check_sizes(value, size, path, door)
    return value


def _check_sizes(value: dict[Any, Any], size: int, path: Path, door: Door) -> None:
    """A tensor can claim any shape over a few bytes (a stride of 0); copied, it would fill the memory."""
    import torch

    for name, item in value.items():
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided:
                raise door.refuse(path, f"{brief(name)} is a sparse tensor, expected a dense one")
            if item.numel() * item.element_size() > max(size, FREE):
                raise door.refuse(
                    path, f"{brief(name)} says it is {tuple(item.shape)}, more than the file's {size:,} bytes"
                )


def _check_ratio(archive: zipfile.ZipFile, path: Path, door: Door) -> None:
    size = regular(path, door=door).st_size
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(FREE, RATIO * size):
        raise door.refuse(path, f"its {size:,} bytes unpack to {unpacked:,}, more than {RATIO} times")


def _look(path: Path, door: Door, *, archive: bool = False) -> int:
    size = regular(path, door=door).st_size
    with open_regular(path, door=door) as stream, telling(door, path):
        head = stream.read(256)
    if not head:
        raise door.refuse(path, "it is empty (0 bytes)")
    if not (archive and head.startswith(b"PK")):
        check_kind(head, path, door=door)
    return size


def _whole(path: Path, kind: str) -> str:
    return f"({path.stat().st_size} bytes) is truncated or no {kind}"
