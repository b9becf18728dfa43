"""Where each hook point lives in each model family, as data.

A hook name is a promise about meaning (`hook_attn_out` is what attention adds to the residual stream), a
module path is where a family happens to compute it; this table is the only place that knows both. Module
names are those of `transformers` 4.56 to 5.x. `hook_resid_mid` is read where the second norm reads it, but it
is written through `hook_attn_out`: editing the input of that norm alone would change what the MLP sees and
leave the residual stream as it was. Source of the paths: the modelling files of transformers 4.57 and 5.23;
each row is checked by `tests/conformance`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polysem.errors import SiteError, UnknownReferenceError
from polysem.registry import did_you_mean
from polysem.types import Site

Width = Literal["d_model", "rows_in", "rows_out"]


@dataclass(frozen=True)
class Tap:
    """The input (first tensor argument) or the output (first element, if a tuple) of one module."""

    path: str
    """module path from the causal LM; `{i}` stands for the layer"""
    side: Literal["in", "out"]
    width: Width = "d_model"
    """d_model, or the input (output) width of the linear map at `path`"""

    def at(self, layer: int | None) -> "Tap":
        """The same tap in one layer."""
        return Tap(self.path.format(i=layer), self.side, self.width)


@dataclass(frozen=True)
class Anatomy:
    """One family: its taps by hook point, and what sets it apart."""

    embed: Tap
    points: Mapping[str, Tap]
    final_norm: str
    absent: Mapping[str, str] = field(default_factory=dict)
    """hook point -> why this family does not have it"""
    scaled_embedding: bool = False
    """the model multiplies embeddings by sqrt(d_model); `hook_embed` and W_E are after that"""
    norm: Literal["layer", "rms"] = "rms"
    """kind of all norms, the last included"""
    eager_attention: bool = False
    """the fused kernels of transformers 4.x leave out this family's attention soft-capping, silently"""

    def tap(self, site: Site, *, family: str, n_layers: int) -> Tap:
        """The tap of a site.

        Raises:
            SiteError: if the layer or the point does not exist in this model.
        """
        if site.layer is None:
            return self.embed
        if not 0 <= site.layer < n_layers:
            raise SiteError(
                f"{site}: this {family} model has layers 0 to {n_layers - 1}, not {site.layer}",
                hint="choose a layer the model has; model.sites() lists them all",
            )
        if site.point not in self.points:
            reason = self.absent.get(site.point, "the family has no such activation")
            raise SiteError(
                f"{site} does not exist in a {family} model: {reason}",
                hint=f"choose one of {', '.join(self.points)}",
            )
        return self.points[site.point].at(site.layer)


_NO_GATE = "its MLP is not gated, so there is no linear branch beside hook_pre"
PARALLEL_RESIDUAL = (
    "attention and MLP read the same residual stream and are added together (use_parallel_residual=True), "
    "so there is no stream between them; hook_resid_pre is what both read, hook_resid_post what both have "
    "written"
)


def _points(
    layer: str, attn: str, z: str, norms: tuple[str, str], pre: str, post: str, *, linear: str = ""
) -> dict[str, Tap]:
    """The taps of a block by the names of its modules.

    Args:
        layer: path of the block; the others are below it.
        attn: attention; what it gives is what it adds to the stream.
        z: the map that ends it.
        norms: in front of attention, and of the MLP.
        pre: the MLP's first map (of a gated one the gate).
        post: its last map.
        linear: the map beside the gate, if it is gated.
    """
    gated = {"mlp.hook_pre_linear": Tap(f"{layer}.mlp.{linear}", "out", "rows_out")} if linear else {}
    return {
        "hook_resid_pre": Tap(layer, "in"),
        "hook_resid_mid": Tap(f"{layer}.{norms[1]}", "in"),
        "hook_resid_post": Tap(layer, "out"),
        "hook_attn_out": Tap(f"{layer}.{attn}", "out"),
        "hook_mlp_out": Tap(f"{layer}.mlp", "out"),
        "attn.hook_in": Tap(f"{layer}.{norms[0]}", "out"),
        "attn.hook_z": Tap(f"{layer}.{attn}.{z}", "in", "rows_in"),
        "attn.hook_out": Tap(f"{layer}.{attn}", "out"),
        "mlp.hook_in": Tap(f"{layer}.{norms[1]}", "out"),
        "mlp.hook_pre": Tap(f"{layer}.mlp.{pre}", "out", "rows_out"),
        "mlp.hook_post": Tap(f"{layer}.mlp.{post}", "in", "rows_in"),
        "mlp.hook_out": Tap(f"{layer}.mlp", "out"),
        **gated,
    }


_GPT2 = Anatomy(
    embed=Tap("transformer.wte", "out"),
    points=_points("transformer.h.{i}", "attn", "c_proj", ("ln_1", "ln_2"), "c_fc", "c_proj"),
    final_norm="transformer.ln_f",
    norm="layer",
    absent={"mlp.hook_pre_linear": _NO_GATE},
)
_NEOX = Anatomy(
    embed=Tap("gpt_neox.embed_in", "out"),
    points=_points(
        "gpt_neox.layers.{i}",
        "attention",
        "dense",
        ("input_layernorm", "post_attention_layernorm"),
        "dense_h_to_4h",
        "dense_4h_to_h",
    ),
    final_norm="gpt_neox.final_layer_norm",
    norm="layer",
    absent={"mlp.hook_pre_linear": _NO_GATE},
)
_NEOX_PARALLEL = Anatomy(
    embed=_NEOX.embed,
    points={point: tap for point, tap in _NEOX.points.items() if point != "hook_resid_mid"},
    final_norm=_NEOX.final_norm,
    norm=_NEOX.norm,
    absent={**_NEOX.absent, "hook_resid_mid": PARALLEL_RESIDUAL},
)


def _gated(second_norm: str) -> dict[str, Tap]:
    norms = ("input_layernorm", second_norm)
    return _points(_L, "self_attn", "o_proj", norms, "gate_proj", "down_proj", linear="up_proj")


_L = "model.layers.{i}"
_LLAMA = Anatomy(
    embed=Tap("model.embed_tokens", "out"),
    points=_gated("post_attention_layernorm"),
    final_norm="model.norm",
)


def _gemma(*, eager: bool) -> Anatomy:
    # Post-norms: what attention and MLP add to the stream is the output of the norm behind them. The
    # embedding is taken at the first layer's door, because transformers 4.x scales it outside the embedding
    # module and 5.x inside.
    return Anatomy(
        embed=Tap("model.layers.0", "in"),
        points={
            **_gated("pre_feedforward_layernorm"),
            "hook_attn_out": Tap(f"{_L}.post_attention_layernorm", "out"),
            "hook_mlp_out": Tap(f"{_L}.post_feedforward_layernorm", "out"),
        },
        final_norm="model.norm",
        scaled_embedding=True,
        eager_attention=eager,
    )


FAMILIES: Mapping[str, Anatomy] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX_PARALLEL,
    "llama": _LLAMA,
    "gemma2": _gemma(eager=True),
    "gemma3_text": _gemma(eager=False),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""model_type of the transformers configuration -> anatomy"""


def logit_cap(config: Any) -> float | None:
    """Where logits are capped, as c tanh(logit / c), by a transformers configuration; None where they are not:
    Gemma 2 has the setting, other families do not know it."""
    return config.final_logit_softcapping if hasattr(config, "final_logit_softcapping") else None


def check_family(model_type: str, *, ref: str) -> None:
    """Refuse a model whose family has no anatomy; there is no guessing of module paths.

    Raises:
        UnknownReferenceError: with the families that are known.
    """
    if model_type not in FAMILIES:
        raise UnknownReferenceError(
            f"{ref} is a {model_type!r} model; polysem knows the inside of {', '.join(FAMILIES)}"
            f"{did_you_mean(model_type, FAMILIES)}",
            hint="use a model of one of these families, or add a row to polysem/models/anatomy.py",
        )


def anatomy_of(config: Any, *, ref: str) -> Anatomy:
    """The anatomy of a model with this transformers configuration.

    Raises:
        UnknownReferenceError: if the family is not known.
    """
    check_family(config.model_type, ref=ref)
    if config.model_type == "gpt_neox" and not config.use_parallel_residual:
        return _NEOX
    return FAMILIES[config.model_type]
