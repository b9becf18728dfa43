"""Transcoders of every dialect: right ones write what their own rule says, wrong ones are named and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from polysem.errors import FidelityError, FormatError, MismatchError, UnknownReferenceError
from polysem.models.base import ModelSpec
from polysem.saes.transcoders import load_transcoders
from polysem.saes.written import check_written
from polysem.types import Site
from support import transcoder_fixtures as fx

TOLERANCE = 1e-5
"""float32 sums of some dozens of terms of size one"""
PARITY = 1e-6
"""of the largest number that stands there"""


def xs(p: fx.Planted, n: int = 40) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(len(p.W_enc), n, p.W_enc.shape[1], generator=g)


@pytest.mark.parametrize("dialect", fx.WRITERS)
def test_every_dialect_writes_what_its_own_rule_says(dialect: str, tmp_path: Path):
    write, parts = fx.WRITERS[dialect]
    p = fx.planted(**parts)
    found = load_transcoders(write(tmp_path, p))
    x = xs(p)
    out = found.written({one.reads: x[one.reads.layer or 0] for one in found.layers})
    assert [site.layer for site in out] == list(range(fx.LAYERS))
    assert {site.point for site in out} == {"hook_mlp_out"}
    expected = p.written(x)
    for m, made in enumerate(out.values()):
        torch.testing.assert_close(made, expected[m], rtol=TOLERANCE, atol=TOLERANCE * 30)
    assert found.cross_layer == parts.get("cross", False)
    assert found.provenance.files


def test_qwen_sets_have_no_configuration(tmp_path: Path):
    p = fx.planted()
    found = load_transcoders(fx.circuit_tracer_plt(tmp_path, p, config=False))
    assert found.layers[0].reads == Site(0, "mlp.hook_in")
    assert found.model_id is None


@pytest.mark.parametrize("parts", [{}, {"skip": True}, {"jump": True}, {"jump": True, "skip": True}])
def test_sae_lens_says_the_same_of_its_four_kinds(parts: dict, tmp_path: Path):
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    p = fx.planted(**parts)
    path = fx.saelens(tmp_path, p)
    one = load_transcoders(path).layers[0]
    theirs = sae_lens.SAE.load_from_disk(path, device="cpu")
    x = xs(p)[1]
    (made,) = one.parts(x).values()
    for own, other in (
        (one.encode(x), theirs.encode(x).detach()), (made, theirs(x).detach()), (made, p.written(xs(p))[1]),
    ):  # fmt: skip
        assert float((own - other).abs().max()) <= PARITY * float(other.abs().max())
    assert (one.reads, one.writes) == (Site(1, "mlp.hook_in"), (Site(1, "hook_mlp_out"),))


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_one_of_gemma_scope_2_is_what_its_files_say(skip: bool, tmp_path: Path):
    """The files read and multiplied by numpy alone, in float64, from the definition; no library reads this format whole."""
    p = fx.planted(cross=True, jump=True, skip=skip, layers=4)
    folder, x = fx.gemma_scope_2_clt(tmp_path, p), xs(p)
    files = [load_file(folder / f"params_layer_{layer}.safetensors") for layer in range(4)]
    codes, written = [], np.zeros((4, 40, fx.D))
    for layer, file in enumerate(files):
        own = {name: values.astype(np.float64) for name, values in file.items()}
        here = x[layer].double().numpy()
        pre = here @ own["w_enc"] + own["b_enc"]
        codes.append(np.where(pre > own["threshold"], pre, 0.0))
        written += np.einsum("nf,fld->lnd", codes[-1], own["w_dec"])  # w_dec [f, L, d]
        written[layer] += own["b_dec"] + (here @ own["affine_skip_connection"] if skip else 0.0)
    found = load_transcoders(folder)
    made = found.written({one.reads: x[layer] for layer, one in enumerate(found.layers)})
    assert [one.reads for one in found.layers] == [Site(layer, "mlp.hook_in") for layer in range(4)]
    for layer, one in enumerate(found.layers):
        for own, expected in (
            (one.encode(x[layer]), codes[layer]), (made[Site(layer, "hook_mlp_out")], written[layer])
        ):  # fmt: skip
            assert np.abs(own.numpy() - expected).max() <= PARITY * np.abs(expected).max()


def test_a_face_is_the_dictionary_of_one_written_site(tmp_path: Path):
    p = fx.planted(cross=True)
    one = load_transcoders(fx.circuit_tracer_clt(tmp_path, p)).layers[0]
    face = one.face(Site(2, "hook_mlp_out"))
    torch.testing.assert_close(face.W_dec, p.W_dec[0, 2])
    assert (face.reads, face.writes) == (Site(0, "hook_resid_mid"), Site(2, "hook_mlp_out"))
    with pytest.raises(MismatchError, match=r"writes blocks.0.hook_mlp_out, blocks.1"):
        one.face(Site(0, "hook_resid_post"))


@pytest.mark.parametrize(
    ("dialect", "gone"),
    [
        ("circuit-tracer CLT, relu", ["W_enc_2.safetensors", "W_dec_2.safetensors"]),
        ("Gemma Scope 2 CLT, affine", ["params_layer_2.safetensors"]),
    ],
)
def test_a_missing_last_layer_is_named(dialect: str, gone: list[str], tmp_path: Path):
    write, parts = fx.WRITERS[dialect]
    write(tmp_path, fx.planted(**parts))
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(FormatError, match="fetch the files of the l"):
        load_transcoders(tmp_path)


def test_a_missing_layer_in_between_is_named(tmp_path: Path):
    fx.circuit_tracer_plt(tmp_path, fx.planted())
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(FormatError, match="lacks the files of layer 1; it holds 0, 2"):
        load_transcoders(tmp_path)


def test_decoder_mass_below_the_own_layer_is_refused(tmp_path: Path):
    p = fx.planted(cross=True, jump=True)
    p.W_dec[1, 0] = torch.ones(fx.F, fx.D)
    with pytest.raises(FormatError, match=r"writes layer 0 .*below\s+its own layer 1"):
        load_transcoders(fx.gemma_scope_2_clt(tmp_path, p))


@pytest.mark.parametrize("how", ["concat", "per-layer", "group"])
def test_coalesced_top_k_is_refused(how: str, tmp_path: Path):
    p = fx.planted(k=fx.K, cross=True)
    with pytest.raises(FormatError, match=rf"(?s)coalesce_topk is '{how}'.*coalesce_topk = \"none\""):
        load_transcoders(fx.clt_training(tmp_path, p, coalesce_topk=how))


def test_files_of_two_models_are_refused(tmp_path: Path):
    fx.circuit_tracer_plt(tmp_path, fx.planted())
    fx.circuit_tracer_plt(tmp_path / "other", fx.planted(d=12))
    (tmp_path / "other" / "layer_1.safetensors").rename(tmp_path / "layer_1.safetensors")
    with pytest.raises(MismatchError, match=r"layer 0 is of .*width 10, layer 1 of .*width 12"):
        load_transcoders(tmp_path)
    fx.gemma_scope_2(tmp_path / "g", fx.planted(jump=True))
    path = next((tmp_path / "g").glob("layer_2*/config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_name": "google/gemma-3-4b-pt"}))
    with pytest.raises(MismatchError, match="gemma-3-1b-pt, width 10, layer 2 of google/gemma-3-4b-pt"):
        load_transcoders(tmp_path / "g")


def test_a_skip_of_another_shape_and_a_skip_that_is_not_declared_are_refused(tmp_path: Path):
    p = fx.planted(skip=True)
    p.W_skip = p.W_skip[:, :, :7]
    with pytest.raises(FormatError, match=r"W_skip of .* has shape \(10, 7\), expected \(10, 10\)"):
        load_transcoders(fx.circuit_tracer_plt(tmp_path, p))
    folder = fx.gemma_scope_2(tmp_path / "g", fx.planted(jump=True, skip=True))
    path = next(folder.glob("layer_0*/config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "affine_connection": False}))
    with pytest.raises(FormatError, match=r"affine_connection is False, but params.safetensors holds"):
        load_transcoders(folder)


def test_a_hub_reference_says_how_to_fetch_the_files():
    with pytest.raises(UnknownReferenceError, match="hf download owner/name --include 'sub/"):
        load_transcoders("hub:owner/name/sub")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_kind: [\n", "not YAML"),
        ("a: &a [*a]\nmodel_kind: transcoder_set\n&b x: *c\n", "not YAML"),
        ("- transcoder_set\n", "expected keys and values, got list"),
        ("model_kind: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("model_kind:\n  deep: 1\n", "model_kind"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path: Path, text: str, said: str):
    fx.circuit_tracer_plt(tmp_path, fx.planted())
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=said):
        load_transcoders(tmp_path)


def test_transcoders_that_lie_elsewhere_are_named(tmp_path: Path):
    fx.circuit_tracer_plt(tmp_path, fx.planted())
    (tmp_path / "config.yaml").write_text(
        "model_kind: transcoder_set\ntranscoders:\n- hf://a/b/c\n- hf://a/b/d\n"
    )
    (tmp_path / "layer_0.safetensors").unlink()
    (tmp_path / "layer_1.safetensors").unlink()
    (tmp_path / "layer_2.safetensors").unlink()
    with pytest.raises(FormatError, match="lie elsewhere: hf://a/b/c"):
        load_transcoders(tmp_path)


class Stage:
    """A model whose activations are made up: every point of a block by name, the MLP written by the planted rule."""

    bos_id = 0

    def __init__(self, p: fx.Planted, *, reads: str, layers: int = fx.LAYERS):
        self.spec = ModelSpec("toy", "memory", "toy", layers, fx.D, 50, 64, "float32", "cpu")
        self.p, self.reads = p, reads

    def sites(self) -> list[Site]:
        points = ("hook_resid_pre", "hook_resid_mid", "mlp.hook_in", "hook_mlp_out", "hook_resid_post")
        return [Site(layer, point) for layer in range(self.spec.n_layers) for point in points]

    def site_width(self, site: Site) -> int:
        return fx.D

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]:
        return [1 + ord(c) % 40 for c in text]

    def capture(self, tokens, sites):
        g = torch.Generator().manual_seed(1)
        stream = torch.randn(self.spec.n_layers, *tokens.shape, fx.D, generator=g) + 1.0
        normed = (stream - stream.mean(-1, keepdim=True)) / stream.std(-1, keepdim=True)
        read = {"mlp.hook_in": normed, "hook_resid_mid": stream}
        wide = self.p.written(read[self.reads].flatten(1, 2)).reshape(stream.shape)
        found = {
            **read,
            "hook_resid_pre": stream * 0.5,
            "hook_mlp_out": wide,
            "hook_resid_post": stream + wide,
        }
        return {site: found[site.point][site.layer] for site in sites}


ROWS = torch.arange(40)[None].repeat(8, 1)


def test_the_gate_names_the_side_of_the_norm(tmp_path: Path):
    p = fx.planted()
    found = load_transcoders(fx.circuit_tracer_plt(tmp_path, p))
    assert (
        max(
            one.fvu for one in check_written(found, Stage(p, reads="mlp.hook_in"), ROWS, max_fvu=0.5).values()
        )
        < 1e-9
    )
    with pytest.raises(
        FidelityError, match=r"They would pass reading hook_resid_mid.*\n.*reads=\"hook_resid_mid\""
    ):
        check_written(found, Stage(p, reads="hook_resid_mid"), ROWS, max_fvu=0.1)
    hinted = load_transcoders(tmp_path, reads="hook_resid_mid")  # the hint works
    check_written(hinted, Stage(p, reads="hook_resid_mid"), ROWS, max_fvu=0.1)


def test_the_gate_names_a_transposed_skip(tmp_path: Path):
    right = fx.planted(skip=True)
    right.W_skip *= 6  # the skip carries what is written
    wrong = fx.planted(skip=True)
    wrong.W_skip = right.W_skip.transpose(1, 2)
    found = load_transcoders(fx.circuit_tracer_plt(tmp_path, wrong))
    with pytest.raises(FidelityError, match="They would pass with the skip transposed"):
        check_written(found, Stage(right, reads="mlp.hook_in"), ROWS, max_fvu=0.3)


def test_the_gate_sums_the_layers_of_a_cross_layer_one(tmp_path: Path):
    p = fx.planted(cross=True)
    found = load_transcoders(fx.circuit_tracer_clt(tmp_path, p))
    seen = check_written(found, Stage(p, reads="hook_resid_mid"), ROWS, max_fvu=0.5)
    assert max(one.fvu for one in seen.values()) < 1e-9
    p.W_dec[0, 2] += 1.0  # one decoder of another layer
    with pytest.raises(FidelityError, match=r"blocks.2.hook_mlp_out"):
        check_written(found, Stage(p, reads="hook_resid_mid"), ROWS, max_fvu=0.05)


def test_fewer_layers_than_the_model_has_are_refused(tmp_path: Path):
    p = fx.planted()
    fx.circuit_tracer_plt(tmp_path, p)
    with pytest.raises(MismatchError, match="of 3 layers, toy has 4"):
        load_transcoders(tmp_path, model=Stage(p, reads="mlp.hook_in", layers=4), allow_other_model=True)
