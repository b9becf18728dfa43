"""Names that the sources use, turned into ours: models under several ids, sites under module paths."""

import re

from polysem.errors import FormatError, SiteError
from polysem.types import Site

_HUB_IDS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.1-8b-it": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.3-70b-it": "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "meta-llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
}
_OWNERS = (
    ("pythia-", "EleutherAI"),
    ("gemma-", "google"),
    ("llama-3", "meta-llama"),
    ("qwen", "Qwen"),
)
_SANDWICH_NORMS = re.compile(r"gemma-?[23]", re.IGNORECASE)
"""models whose raw mlp and attention outputs pass another norm before they reach the residual stream"""
_LAYER = r"(?:^|\.)(?:layers|h)[._](\d+)"


def hub_id(name: str) -> str:
    """The Hub id of a model known under a TransformerLens, Neuronpedia or Hub name; unknown names are
    returned as they are."""
    bare = name.rsplit("/", 1)[-1].lower()
    if name.startswith("zoo:"):
        return name
    if bare in _HUB_IDS:
        return _HUB_IDS[bare]
    if "/" not in name:
        for prefix, owner in _OWNERS:
            if bare.startswith(prefix):
                return f"{owner}/{name}"
    return name


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model. A missing owner, and case, make no difference."""
    first, second = hub_id(one).lower(), hub_id(other).lower()
    if "/" in first and "/" in second:
        return first == second
    return first.rsplit("/", 1)[-1] == second.rsplit("/", 1)[-1]


def site_of_hook(name: str) -> Site:
    """The site of a TransformerLens hook name, with the spellings that SAE configurations use.

    Raises:
        SiteError: if the name is no hook point of the vocabulary.
    """
    aliased = re.sub(r"^(blocks\.\d+)\.hook_z$", r"\1.attn.hook_z", name)
    aliased = re.sub(r"^(blocks\.\d+\.hook_resid_(?:pre|mid|post))_\d+$", r"\1", aliased)
    return Site.parse(aliased)


def site_of_module(path: str, *, model_id: str | None) -> Site:
    """The site of a Hugging Face module path such as `layers.5.mlp` or
    `model.layers.17.self_attn.o_proj.input`.

    Outputs of `mlp` and attention modules are what joins the residual stream (`hook_mlp_out`), except in
    models with a norm behind them, where the raw output is another tensor (`mlp.hook_out`).

    Raises:
        FormatError: if the path names no site that is known.
    """
    tail = path.rsplit(".", 1)[-1]
    side = tail if tail in ("input", "output") else "output"
    trunk = path.removesuffix(f".{side}")
    if trunk.rsplit(".", 1)[-1] in ("embed_tokens", "embed_in", "wte"):
        return Site(None, "hook_embed")
    match = re.search(_LAYER, trunk)
    if match is None:
        raise _unknown_module(path)
    sandwich = bool(model_id and _SANDWICH_NORMS.search(model_id))
    part = trunk[match.end() :].lstrip(".")
    point = _points(sandwich=sandwich).get((part, side))
    if point is None:
        raise _unknown_module(path)
    return Site(int(match.group(1)), point)


def _points(*, sandwich: bool) -> dict[tuple[str, str], str]:
    points = {("", "output"): "hook_resid_post", ("", "input"): "hook_resid_pre"}
    points[("mlp", "output")] = "mlp.hook_out" if sandwich else "hook_mlp_out"
    for attention, projection in (("attn", "c_proj"), ("attention", "dense"), ("self_attn", "o_proj")):
        points[(attention, "output")] = "attn.hook_out" if sandwich else "hook_attn_out"
        points[(f"{attention}.{projection}", "input")] = "attn.hook_z"
    for projection in ("c_proj", "dense_4h_to_h", "down_proj"):
        points[(f"mlp.{projection}", "input")] = "mlp.hook_post"
    if sandwich:
        points[("post_feedforward_layernorm", "output")] = "hook_mlp_out"
        points[("post_attention_layernorm", "output")] = "hook_attn_out"
    return points


def _unknown_module(path: str) -> FormatError:
    return FormatError(
        f"module path {path!r} names no site that polysem knows; expected e.g. layers.5, layers.5.mlp, "
        "embed_tokens",
        hint='name the site yourself: site = "blocks.5.hook_resid_post"',
    )


def site_of_name(name: str, *, model_id: str | None) -> Site:
    """The site of a hook name or else of a module path.

    Raises:
        SiteError: if the name is neither.
    """
    try:
        return site_of_hook(name)
    except SiteError:
        try:
            return site_of_module(name, model_id=model_id)
        except FormatError:
            pass
        raise


def declared_site(name: str, *, model_id: str | None) -> Site | str:
    """`site_of_name`, or the name itself where it is no site: who loads the SAE may know better."""
    try:
        return site_of_name(name, model_id=model_id)
    except SiteError:
        return name
