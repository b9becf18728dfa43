"""Random-weight models in the shapes of Pythia-70M and GPT-2 small, and what a sweep is asked of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from polysem.models.hf import HFModel
from polysem.types import Site
from polysem.worlds.tiny import tiny_tokenizer

Shape = Literal["Pythia-70M", "GPT-2"]
MIDDLE: dict[Shape, int] = {"Pythia-70M": 3, "GPT-2": 6}
DOSES = torch.cat([-torch.logspace(-1, 1, 16).flip(0) * 2, torch.logspace(-1, 1, 16) * 2])
"""32 values from -20 to 20"""
SHARPEN = 8.0
"""the unembedding is scaled by this: random weights alone give a flat next-token distribution, on which no
error of a logit could show in c"""

_READ = 2


@dataclass(frozen=True)
class World:
    """A model, a site in its middle, prompts, directions and one target set."""

    shape: Shape
    model: HFModel
    site: Site
    prompts: torch.Tensor
    directions: torch.Tensor
    targets: list[int]
    similarity: torch.Tensor
    """s of the target set over the vocabulary: c = p . s"""

    @property
    def block(self) -> Any:
        layers: Any = self.model.model.get_submodule(
            "gpt_neox.layers" if self.shape == "Pythia-70M" else "transformer.h"
        )
        return layers[self.site.layer]

    def read(self, logits: torch.Tensor) -> torch.Tensor:
        """(c, overlap) of rows of logits, float32. A sum and no product: a product adds up 50,000 terms one after
        the other, which costs more digits than all of the model. Few rows at a time, which stay in the cache."""
        return torch.cat([self._read(rows) for rows in logits.split(_READ)])

    def _read(self, logits: torch.Tensor) -> torch.Tensor:
        p = logits.softmax(-1)
        return torch.stack([(p * self.similarity).sum(-1), p[:, self.targets].sum(-1)], 1)


def config(shape: Shape, *, quick: bool = False, n_layers: int | None = None) -> tuple[Any, Any]:
    """(class, configuration) of a shape; a tenth of the vocabulary if quick."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    if shape == "GPT-2":
        return GPT2LMHeadModel, GPT2Config(
            vocab_size=5025 if quick else 50257, n_layer=n_layers or 12, bos_token_id=0, eos_token_id=0
        )
    return GPTNeoXForCausalLM, GPTNeoXConfig(
        hidden_size=512,
        num_hidden_layers=n_layers or 6,
        num_attention_heads=8,
        intermediate_size=2048,
        vocab_size=5030 if quick else 50304,
    )


def make_world(
    shape: Shape, *, pos: int = 12, n_prompts: int = 1, n_directions: int = 1, quick: bool = False,
    n_layers: int | None = None,
) -> World:  # fmt: skip
    """Seeded weights, tokens and directions."""
    torch.manual_seed(0)
    kind, parts = config(shape, quick=quick, n_layers=n_layers)
    model = HFModel.from_parts(kind(parts).eval(), tiny_tokenizer(), ref=f"random {shape}")
    with torch.no_grad():
        model.model.get_parameter(f"{model.anatomy.final_norm}.weight").mul_(SHARPEN)
    targets = torch.randint(0, model.spec.d_vocab, (10,)).unique().tolist()
    unit = F.normalize(model.W_E, dim=1)
    layer = model.spec.n_layers // 2
    return World(
        shape=shape,
        model=model,
        site=Site(layer, "hook_resid_post"),
        prompts=torch.randint(0, model.spec.d_vocab, (n_prompts, pos)),
        directions=F.normalize(torch.randn(n_directions, model.spec.d_model), dim=1),
        targets=targets,
        similarity=(unit @ unit[targets].T).amax(1),
    )


def largest_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference."""
    return float((one - other).abs().max())


Run = Callable[[], object]
