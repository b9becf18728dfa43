"""Malformed inputs of every loader: the product's own error or a value, never another exception, in bounded time.

Each loader has a good file; cases are that file cut, flipped, spliced, repeated, and filled with what breaks parsers. The short
form runs a few dozen cases a loader; `test_many_malformed_inputs` runs 1,000 (slow).
"""

import json
import resource
import sys
import time
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polysem.boundary import tensors, text
from polysem.boundary.door import Door
from polysem.categories import load_categories
from polysem.config import load_study
from polysem.corpus import documents
from polysem.errors import PolysemError
from polysem.glosses.read import read_glosses
from polysem.keys import Keyring
from polysem.models.load import load_model, load_outline
from polysem.saes.load import load_sae
from polysem.side_effects.directions import read_direction
from polysem.side_effects.public import read_feature_table
from polysem.store.manifest import Manifest, Output, StageInputs
from polysem.transfer.config import load_transfer
from polysem.transfer.panel import load_panel
from polysem.types import Site
from support.tiny import save_tiny_model

LONGEST = 20.0
"""seconds"""
MOST = 2 << 30
"""bytes of memory that a case may add"""
GLOSSES = b'{"feature": 3, "gloss": "the sea"}\n{"feature": 4, "gloss": "kings", "embedding": [0.5, 1e3]}\n'
TABLE = b'feature,gloss,explainer\n3,"the sea, and ships",gpt\n4,kings,gpt\n'
CONFIG = (
    b'{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 64, "n_positions": 32, '
    b'"architectures": ["GPT2LMHeadModel"]}'
)
STUDY = b'name = "a"\n[model]\nref = "zoo:gpt2"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_resid_post"\n[pairs]\nbins = [0.1, 0.2]\n'
POISON = [
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e400", b"NaN", b"-1", b"1" + b"0" * 400, b"\\ud800", b"\xff\xfe", b"\x00" * 64,
    b'"', b"null", b"true", b"1e9", b"~nouser/x", b"../../../../etc/passwd", b"/dev/zero", b"\xef\xbb\xbf", b"\r\n\r\n", b"{}", b"[]", b"0.5",
]  # fmt: skip


def _safetensors(folder: Path) -> bytes:
    save_file({name: torch.ones(*shape) for name, shape in SHAPES.items()}, folder / "x")
    return (folder / "x").read_bytes()


SHAPES = {"W_enc": (8, 16), "W_dec": (16, 8), "b_enc": (16,), "b_dec": (8,)}


def _torch(folder: Path) -> bytes:
    torch.save(
        {"encoder.weight": torch.ones(16, 8), "decoder.weight": torch.ones(8, 16), "k": 4}, folder / "x"
    )
    return (folder / "x").read_bytes()


def _npz(folder: Path) -> bytes:
    shapes = {**SHAPES, "threshold": (16,)}
    np.savez(folder / "x.npz", **{name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    return (folder / "x.npz").read_bytes()


def _sae_config(folder: Path, name: str) -> None:
    config = {
        "d_in": 8, "d_sae": 16, "architecture": "standard", "hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.0.0",
        "metadata": {"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.0.0"}, "normalize_activations": "none",
    }  # fmt: skip
    (folder / name).write_text(json.dumps(config))


def _sae(path: Path) -> object:
    if path.name == "cfg.json":
        save_file(
            {name: torch.ones(*shape) for name, shape in SHAPES.items()},
            path.with_name("sae_weights.safetensors"),
        )
    else:
        _sae_config(path.parent, "cfg.json")
    return load_sae(str(path.parent))


def _manifest(folder: Path) -> bytes:
    made_from = StageInputs("pairs", {"pairs": 1}, {}, {}, {"features/features.parquet": "0" * 64}, {})
    Manifest(made_from, {"pairs/a.parquet": Output("0" * 64, 3)}, {"device": "cpu"}).write(folder / "x")
    return (folder / "x").read_bytes()


CATEGORIES = b'colors = "red blue"\nanimals = ["dog", "the cat"]\n'
FEATURES = b"feature,cost,label\n1,0.5,sea\n2,0.25,king\n"
KEYS = b'"https://host.example/v1" = "sk-1"\n"http://localhost:8000" = "sk-2"\n'


def _template(name: str) -> bytes:
    return files("polysem.cli").joinpath(name).read_bytes()


def _npy(folder: Path) -> bytes:
    np.save(folder / "x.npy", np.ones(16, np.float32))
    return (folder / "x.npy").read_bytes()


def _part_of_model(
    file: str, load: Callable[[str], object]
) -> tuple[str, Callable[[Path], bytes], Callable[[Path], object]]:
    """A file of a model folder of which all others are whole."""

    def make(folder: Path) -> bytes:
        save_tiny_model("gpt2", folder / "model")
        return (folder / "model" / file).read_bytes()

    def read(path: Path) -> object:
        for other in (path.parent.parent / "model").iterdir():
            if other.name != path.name:
                (path.parent / other.name).symlink_to(other)
        return load(str(path.parent))

    return file, make, read


def _keys(path: Path) -> object:
    path.chmod(0o600)
    return Keyring.of({"POLYSEM_KEYS": str(path)}).key("https://host.example/v1")


LOADERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], object]]] = {
    "glosses, lines": ("g.jsonl", lambda _: GLOSSES, lambda p: read_glosses(f"file:{p}")),
    "glosses, JSON": (
        "g.json",
        lambda _: b'{"3": "the sea", "4": ["kings"]}',
        lambda p: read_glosses(f"file:{p}"),
    ),
    "glosses, table": ("g.csv", lambda _: TABLE, lambda p: read_glosses(f"file:{p}")),
    "glosses, packed": (
        "g.jsonl.gz",
        lambda _: zlib.compress(GLOSSES, wbits=31),
        lambda p: read_glosses(f"file:{p}"),
    ),
    "export": ("batch-0.jsonl", lambda _: GLOSSES, lambda p: read_glosses(f"neuronpedia:{p.parent}")),
    "corpus, lines": ("c.jsonl", lambda _: b'{"text": "the sea"}\n' * 3, lambda p: list(documents(str(p)))),
    "corpus, JSON": ("c.json", lambda _: b'["the sea", "kings"]', lambda p: list(documents(str(p)))),
    "corpus, text": ("c.txt", lambda _: b"the sea\n\nthe king\n", lambda p: list(documents(str(p)))),
    "study": ("study.toml", lambda _: STUDY, load_study),
    "transfer study": ("transfer.toml", lambda _: _template("transfer.toml"), load_transfer),
    "panel": ("judges.toml", lambda _: _template("judges.toml"), load_panel),
    "model configuration": _part_of_model("config.json", load_outline),
    "tokenizer": _part_of_model("tokenizer.json", load_outline),
    "tokenizer settings": _part_of_model("tokenizer_config.json", load_outline),
    "model weights": _part_of_model("model.safetensors", load_model),
    "direction": ("a.npy", _npy, lambda p: read_direction(p, site=Site(1, "hook_resid_post"))),
    "word table": ("w.toml", lambda _: CATEGORIES, lambda p: load_categories(str(p), ["colors", "animals"])),
    "published features": ("f.csv", lambda _: FEATURES, read_feature_table),
    "keys": ("keys.toml", lambda _: KEYS, _keys),
    "SAE configuration": ("cfg.json", lambda f: (_sae_config(f, "x"), (f / "x").read_bytes())[1], _sae),
    "SAE weights": ("sae_weights.safetensors", _safetensors, _sae),
    "checkpoint": ("a.pt", _torch, lambda p: load_sae(str(p), site="blocks.1.hook_resid_post")),
    "torch file": ("a.pt", _torch, tensors.read_torch),
    "npz": ("params.npz", _npz, lambda p: load_sae(str(p.parent), site="blocks.1.hook_resid_post")),
    "manifest": ("manifest.json", _manifest, lambda p: Manifest.read(p, rebuild="polysem run")),
    "settings": ("a.json", lambda _: CONFIG, lambda p: text.read_json(p, door=Door())),
}


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """`good`, broken in one of many ways."""
    at = int(rng.integers(len(good) + 1))
    poison = POISON[int(rng.integers(len(POISON)))]
    match int(rng.integers(8)):
        case 0:
            return good[:at]
        case 1:
            flipped = bytearray(good)
            for place in rng.integers(len(good), size=int(rng.integers(1, 8))):
                flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)
        case 2:
            return good[:at] + poison + good[at:]
        case 3:
            return rng.bytes(int(rng.integers(200)))
        case 4:
            return poison
        case 5:
            return good[at:] + good[:at]
        case 6:
            return good * int(rng.integers(2, 5)) + good[:at]
        case _:
            return _value_replaced(good, poison, rng)


def _value_replaced(good: bytes, poison: bytes, rng: np.random.Generator) -> bytes:
    """A value behind a colon, an equals sign or a comma in place of the one that was there."""
    places = [n for n, byte in enumerate(good) if byte in b":=,"]
    if not places:
        return poison + good
    start = places[int(rng.integers(len(places)))] + 1
    ends = [n for n in (good.find(mark, start) for mark in (b",", b"}", b"\n")) if n > 0]
    return good[:start] + poison + good[min(ends, default=len(good)) :]


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fuzz(name: str, folder: Path, *, n: int) -> None:
    file, make, load = LOADERS[name]
    good = make(folder)
    rng = np.random.default_rng(sum(name.encode()))
    before, refused = _memory(), 0
    for case in range(n):
        place = folder / f"{case}"
        place.mkdir()
        content = damaged(good, rng)
        (place / file).write_bytes(content)
        started = time.monotonic()
        try:
            load(place / file)
        except PolysemError:
            refused += 1
        except Exception as error:  # noqa: BLE001  (any other is what is looked for)
            pytest.fail(f"{name}, case {case}: {type(error).__name__}: {error!s:.200} from {content[:120]!r}")
        assert time.monotonic() - started < LONGEST, (case, content[:120])
    assert _memory() - before < MOST
    assert refused > n / 10, "damage that nothing notices is no test"


@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"checkpoint"}))
def test_the_good_file_is_read(name, tmp_path):
    """Of a checkpoint the file alone is not the whole input."""
    file, make, load = LOADERS[name]
    place = tmp_path / "good"
    place.mkdir()
    (place / file).write_bytes(make(tmp_path))
    load(place / file)


@pytest.mark.parametrize("name", LOADERS)
def test_malformed_inputs(name, tmp_path):
    _fuzz(name, tmp_path, n=40)


@pytest.mark.parametrize("name", LOADERS)
def test_many_malformed_inputs(name, tmp_path):
    _fuzz(name, tmp_path, n=1000)
