"""Transcoders against the libraries whose files they are: the same folder, read by both, encoded and written alike.

Neither library is a dependency: `pip install --no-deps --target DIR circuit-tracer==0.5.0 decode-clt==0.0.1`, DIR on PYTHONPATH.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from polysem.errors import FormatError
from polysem.saes.transcoders import load_transcoders
from support import transcoder_fixtures as fx

TOLERANCE = 1e-6
"""of the largest number that stands there"""


def xs(p: fx.Planted) -> torch.Tensor:
    return torch.randn(len(p.W_enc), 40, p.W_enc.shape[1], generator=torch.Generator().manual_seed(3))


def close(own: torch.Tensor, theirs: torch.Tensor) -> None:
    own, theirs = own.double(), theirs.detach().double()
    assert own.shape == theirs.shape
    assert float((own - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("norm", ["none", "mean_std", "sqrt_d_model"])
@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
@pytest.mark.parametrize("parts", [{}, {"jump": True, "skip": True}], ids=["relu", "jumprelu, skip"])
def test_decode_clt_says_the_same(parts: dict, tying: str, norm: str, tmp_path: Path):
    clt = pytest.importorskip("clt.models.clt", reason="decode-clt is not installed")
    from clt.config import CLTConfig

    p = fx.planted(cross=True, **parts)
    fx.decode_clt(tmp_path, p, tying=tying, norm=norm)
    peer = clt.CrossLayerTranscoder(CLTConfig.from_json(tmp_path / "cfg.json"), None, torch.device("cpu"))
    peer.load_state_dict(load_file(tmp_path / "clt_checkpoint_latest.safetensors"))
    stats = json.loads((tmp_path / "norm_stats.json").read_text()) if norm == "mean_std" else None

    def moved(x: torch.Tensor, layer: int, side: str, *, back: bool = False) -> torch.Tensor:
        if norm == "sqrt_d_model":
            return x / fx.D**0.5 if back else x * fx.D**0.5
        if stats is None:
            return x
        mean, std = (torch.tensor(stats[str(layer)][side][key]) for key in ("mean", "std"))
        return x * (std + 1e-6) + mean if back else (x - mean) / (std + 1e-6)

    x = xs(p)
    theirs = {i: moved(x[i], i, "inputs") for i in range(fx.LAYERS)}
    found = load_transcoders(tmp_path)
    acts = peer.get_feature_activations(theirs)
    for i, one in enumerate(found.layers):
        close(one.encode(x[i]), acts[i])
    written = peer(theirs)
    out = found.written({one.reads: x[i] for i, one in enumerate(found.layers)})
    for m, own in enumerate(out.values()):
        close(own, moved(written[m], m, "targets", back=True))


@pytest.mark.parametrize(("jump", "skip"), [(False, False), (True, False), (False, True), (True, True)])
def test_circuit_tracer_says_the_same_of_a_per_layer_set(jump: bool, skip: bool, tmp_path: Path):
    peer = pytest.importorskip(
        "circuit_tracer.transcoder.single_layer_transcoder", reason="circuit-tracer is not installed"
    )
    p = fx.planted(jump=jump, skip=skip)
    found, x = load_transcoders(fx.circuit_tracer_plt(tmp_path, p)), xs(p)
    for i, one in enumerate(found.layers):
        place = str(tmp_path / f"layer_{i}.safetensors")
        own = peer.load_relu_transcoder(place, i, device=torch.device("cpu"))
        close(one.encode(x[i]), own.encode(x[i]))
        (made,) = one.parts(x[i]).values()
        close(made, own(x[i]))


@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer_says_the_same_of_gemma_scope(skip: bool, tmp_path: Path):
    peer = pytest.importorskip(
        "circuit_tracer.transcoder.single_layer_transcoder", reason="circuit-tracer is not installed"
    )
    p = fx.planted(jump=True, skip=skip)
    second = fx.gemma_scope_2(tmp_path / "2", p)
    sets = [(second, peer.load_gemma_scope_2_transcoder, "params.safetensors")]
    sets += (
        [] if skip else [(fx.gemma_scope(tmp_path / "1", p), peer.load_gemma_scope_transcoder, "params.npz")]
    )
    x = xs(p)
    for folder, theirs, name in sets:
        for i, one in enumerate(load_transcoders(folder).layers):
            (place,) = (f / name for f in folder.iterdir() if f.name.split("_")[1] == str(i))
            own = theirs(str(place), i, device=torch.device("cpu"))
            close(one.encode(x[i]), own.encode(x[i]))
            (made,) = one.parts(x[i]).values()
            close(made, own(x[i]))


@pytest.mark.parametrize("jump", [False, True])
def test_circuit_tracer_says_the_same_of_a_cross_layer_one(jump: bool, tmp_path: Path):
    peer = pytest.importorskip(
        "circuit_tracer.transcoder.cross_layer_transcoder", reason="circuit-tracer is not installed"
    )
    p = fx.planted(cross=True, jump=jump)
    found, x = load_transcoders(fx.circuit_tracer_clt(tmp_path, p)), xs(p)
    own = peer.load_clt(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    codes = own.encode(x)
    for i, one in enumerate(found.layers):
        close(one.encode(x[i]), codes[i])
    theirs = own.decode(codes)
    for m, made in enumerate(found.written({one.reads: x[i] for i, one in enumerate(found.layers)}).values()):
        close(made, theirs[m])


def test_a_decode_clt_folder_that_says_too_little_is_refused(tmp_path: Path):
    p = fx.planted(cross=True, jump=True)
    fx.decode_clt(tmp_path / "topk", p, activation_fn="batchtopk", batchtopk_k=5)
    with pytest.raises(FormatError, match=r"(?s)activation_fn is 'batchtopk'.*convert_to_jumprelu_inplace"):
        load_transcoders(tmp_path / "topk")
    fx.decode_clt(tmp_path / "norm", p, norm="mean_std")
    (tmp_path / "norm" / "norm_stats.json").unlink()
    with pytest.raises(FormatError, match=r"(?s)normalization_method is 'mean_std'.*copy norm_stats.json"):
        load_transcoders(tmp_path / "norm")
    fx.decode_clt(tmp_path / "last", p, num_layers=4)
    with pytest.raises(FormatError, match=r"encoders.3.weight is missing, expected \(24, 10\)"):
        load_transcoders(tmp_path / "last")
    place = fx.decode_clt(tmp_path / "below", p) / "clt_checkpoint_latest.safetensors"
    save_file({**load_file(place), "decoder_module.decoders.2->0.weight": torch.ones(fx.D, fx.F)}, place)
    with pytest.raises(
        FormatError,
        match=r"(?s)decoders.2->0.weight writes layer 0, below its own layer 2.*without those below",
    ):
        load_transcoders(tmp_path / "below")
    fx.decode_clt(tmp_path / "tie", p, decoder_tying="both")
    with pytest.raises(FormatError, match=r"(?s)decoder_tying is 'both'.*named by two layers"):
        load_transcoders(tmp_path / "tie")
