"""The door for foreign files: what is hostile or broken becomes the product's own error, quickly and in little memory."""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polysem.boundary import tensors, text
from polysem.boundary.door import Door
from polysem.boundary.files import inside, local_path, read_bytes, read_plain, steady
from polysem.boundary.settings import check_model_config
from polysem.config import load_study
from polysem.errors import ConfigError, FormatError, PolysemError, UnknownReferenceError

DOOR = Door()


@pytest.mark.parametrize("written", ["~nouser/x", "a\0b", "x" * 5000, "y/" + "z" * 300])
def test_paths_that_are_none_are_refused(written):
    with pytest.raises(ConfigError):
        local_path(written)


def test_a_pipe_a_folder_a_device_and_a_dangling_link_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, says in [
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "link", "is a link to .*nowhere, which is not there"),
        (tmp_path / "absent", "is missing; the folder holds"),
    ]:
        with pytest.raises(UnknownReferenceError, match=says):
            read_bytes(path, door=DOOR)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested deeper than 64"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": 1' + "0" * 400 + "}", "401 digits"),
        ('{"a": ', "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_json_beyond_bounds(content, says):
    with pytest.raises(FormatError, match=says):
        text.parse_json(content, "f", door=DOOR)


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 5000,
        "a = " + "9" * 5000,
        "a = 1" + "0" * 400,
        "a = [" * 70 + "]" * 70,
        "a.b = 1\na = 2",
    ],
)
def test_toml_beyond_bounds(content):
    with pytest.raises(FormatError):
        text.parse_toml(content, "f", door=DOOR)


@pytest.mark.parametrize("content", [b"name = '\xff'", b"\xff\xfe\x00", b"a = " + b"[" * 5000, b"\x00" * 100])
def test_a_study_file_that_is_no_text_is_a_setting_error(tmp_path, content):
    (tmp_path / "study.toml").write_bytes(content)
    with pytest.raises(ConfigError):
        load_study(tmp_path / "study.toml")


def test_a_packed_file_is_read_and_a_bomb_is_not(tmp_path):
    import pyarrow as pa

    plain = b"some words\n" * 100
    for name, packed in (
        ("a.gz", zlib.compress(plain, wbits=31)),
        ("b.gz", zlib.compress(plain[:11], wbits=31) + zlib.compress(plain[11:], wbits=31)),
        ("c.zst", pa.Codec("zstd").compress(plain, asbytes=True)),
    ):
        (tmp_path / name).write_bytes(packed)
        assert read_plain(tmp_path / name, door=DOOR) == plain
        (tmp_path / name).write_bytes(packed[:-4])
        with pytest.raises(PolysemError, match="is not whole"):
            read_plain(tmp_path / name, door=DOOR)
    (tmp_path / "bomb.gz").write_bytes(zlib.compress(b"\0" * (64 << 20), wbits=31))
    with pytest.raises(FormatError, match="unpack to more than"):
        read_plain(tmp_path / "bomb.gz", door=DOOR)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"n_layer": 10**9}, "n_layer is 1000000000, expected a whole number from 1 to 4,096"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
    ],
)
def test_sizes_that_no_model_has(sizes, says):
    with pytest.raises(FormatError, match=says):
        check_model_config(sizes, Path("config.json"), door=DOOR)


# tensors


def test_a_file_written_over_changes_no_tensor(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1000)}, path)
    read = tensors.read_safetensors(path)["x"]
    with path.open("r+b") as stream:
        stream.seek(-4000, os.SEEK_END)
        stream.write(b"\0" * 4000)
    assert read.sum() == 1000
    with path.open("r+b") as stream:
        stream.truncate(10)
    assert read.sum() == 1000, "a mapped file would end the process here"


def test_a_file_written_to_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    with pytest.raises(FormatError, match="written to while it was read"), steady(path, door=DOOR):
        path.write_bytes(b"other")


def _npz(path, header: bytes, body: bytes = b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<c8', 'fortran_order': False, 'shape': (0,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '<f4', (((\n",
        b"\xff" * 40,
    ],
)
def test_headers_of_arrays_that_lie(tmp_path, header):
    _npz(tmp_path / "a.npz", header)
    with pytest.raises(FormatError):
        tensors.read_npz(tmp_path / "a.npz")


def test_arrays_come_as_they_were_written(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.eye(3, dtype=">f8")[:2]),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    read = tensors.read_npz(tmp_path / "a.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].numpy(), array)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="more than the file's"):
        tensors.read_torch(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_weights_that_are_none(tmp_path, content):
    for name, read in (
        ("a.pt", tensors.read_torch),
        ("a.npz", tensors.read_npz),
        ("a.safetensors", tensors.read_safetensors),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError):
            read(tmp_path / name)


# lists that name files


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "", None, 3, "a\0b", "x" * 300, "out/x"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    root = tmp_path / "run"
    root.mkdir()
    (root / "out").symlink_to("/")
    with pytest.raises(FormatError):
        inside(root, name, door=DOOR, where="manifest")


def test_names_inside_are_paths(tmp_path):
    assert inside(tmp_path, "pairs/part-0.parquet", door=DOOR, where="m") == tmp_path / "pairs/part-0.parquet"


def test_errors_show_no_control_characters(tmp_path):
    with pytest.raises(FormatError) as caught:
        text.json_object(["\x1b[31mred\x07"], "f", door=DOOR)
    assert "\x1b" not in str(caught.value)
    assert json.dumps(str(caught.value))
    assert io.StringIO(str(caught.value)).read()


def gguf_header(*told: bytes, n_told: int | None = None, n_tensors: int = 0) -> bytes:
    return (
        b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(told) if n_told is None else n_told) + b"".join(told)
    )


@pytest.mark.parametrize(
    "content",
    [
        gguf_header(
            struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 40)
        ),  # an array of 2^40 bytes
        gguf_header(struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 20)),
        gguf_header(struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 1)),
        gguf_header(struct.pack("<Q", 1 << 60) + b"a"),
        gguf_header(struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77)),
        gguf_header(n_told=1 << 50),
        gguf_header(n_tensors=1 << 50),
        gguf_header(n_tensors=1) + struct.pack("<Q", 1) + b"w" + struct.pack("<I", 1 << 30),
        b"GGUF",
        b"GGML" + bytes(64),
    ],
)
def test_a_gguf_file_that_says_more_than_it_holds_is_refused_at_once(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(FormatError, match="is truncated or no GGUF file"):
        tensors.check_gguf(tmp_path / "m.gguf")


def test_a_gguf_file_that_holds_what_it_says_passes(tmp_path):
    text_of = lambda word: struct.pack("<Q", len(word)) + word  # noqa: E731
    told = (
        text_of(b"a") + struct.pack("<I", 8) + text_of(b"x"),
        text_of(b"b") + struct.pack("<IIQ", 9, 8, 2) + text_of(b"y") + text_of(b""),
        text_of(b"c") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 1, 2),
        text_of(b"d") + struct.pack("<Id", 12, 0.5),
    )
    tensor = text_of(b"w") + struct.pack("<IQIQ", 1, 4, 0, 0)
    (tmp_path / "m.gguf").write_bytes(gguf_header(*told, n_tensors=1) + tensor)
    tensors.check_gguf(tmp_path / "m.gguf")
