"""A dialect from another distribution: an entry point of the group `polysem.saes` that names a record."""

import numpy as np
import pytest
import torch

from polysem.errors import FormatError, UnknownReferenceError
from polysem.saes import load_sae
from polysem.saes.dialects import DIALECTS

MODULE = """
import numpy as np, torch
from polysem.saes.dialects import Dialect
from polysem.saes.parts import SAEParts
from polysem.types import Site

TOY = Dialect("toy", "toy", "two arrays", load="toy_dialect:load", files=("toy.npy", "toy.txt"))
TAKEN = Dialect("saelens", "again", "a name that is taken", load="toy_dialect:load", files=("x",))

def load(source):
    W = torch.from_numpy(np.load(source.path / "toy.npy"))
    zeros = torch.zeros
    return SAEParts(
        dialect="toy",
        weights=source.path / "toy.npy",
        tensors={"W_enc": W.T, "W_dec": W, "b_enc": zeros(len(W)), "b_dec": zeros(W.shape[1])},
        activation="relu",
        site=Site.parse((source.path / "toy.txt").read_text()),
        model_id="toy/model",
        configs=(source.path / "toy.txt",),
    )
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Installs a distribution with entry points, for one test."""

    def install(*lines: str) -> None:
        (tmp_path / "toy_dialect.py").write_text(MODULE)
        made = tmp_path / "toy_dialect-1.0.dist-info"
        made.mkdir()
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-dialect\nVersion: 1.0\n")
        (made / "entry_points.txt").write_text("[polysem.saes]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("_words", "packages"):
            monkeypatch.delitem(vars(DIALECTS), name, raising=False)

    yield install
    for name in ("_words", "packages"):
        vars(DIALECTS).pop(name, None)


def toy_folder(tmp_path):
    folder = tmp_path / "sae"
    folder.mkdir()
    np.save(folder / "toy.npy", np.eye(4, dtype=np.float32)[:3])
    (folder / "toy.txt").write_text("blocks.0.hook_mlp_out")
    return folder


def test_a_dialect_is_added_without_editing_a_file(tmp_path, distribution):
    folder = toy_folder(tmp_path)
    with pytest.raises(FormatError, match="no SAE of a known format"):
        load_sae(str(folder))
    distribution("toy = toy_dialect:TOY")
    sae = load_sae(str(folder))
    assert (str(sae.reads), str(sae.writes), sae.d_sae, sae.d_in) == (*["blocks.0.hook_mlp_out"] * 2, 3, 4)
    assert sae.provenance.dialect == "toy"
    assert [name for name, _ in sae.provenance.files] == ["toy.npy", "toy.txt"]
    torch.testing.assert_close(sae.decode(sae.encode(torch.eye(4)[:3])), torch.eye(4)[:3])
    assert load_sae(str(folder / "toy.npy")).provenance.files == sae.provenance.files
    assert DIALECTS.packages == ("toy-dialect",)
    (folder / "toy.txt").unlink()
    with pytest.raises(FormatError, match=r"beside toy\.npy it lacks toy\.txt"):
        load_sae(str(folder))


def test_a_name_that_is_taken_is_refused(tmp_path, distribution):
    distribution("again = toy_dialect:TAKEN")
    with pytest.raises(UnknownReferenceError, match="'saelens', which there is already") as caught:
        load_sae(str(toy_folder(tmp_path)))
    assert caught.value.hint == "pip uninstall toy-dialect"
