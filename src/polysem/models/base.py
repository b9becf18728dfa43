"""The seam for models: what the rest of polysem may ask of one.

A white-box model runs token ids through a causal language model, with row-wise edits, and gives captured
activations and vector-Jacobian products. It never hears the word "feature". Raw `transformers` weights are
the reference: no folding, no centring. All rows of a call have the same length, so there is no padding;
callers group prompts by length.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.models.generate import Generated, Scope, Told
from polysem.types import Site


@dataclass(frozen=True)
class ModelSpec:
    """What a model is, as it goes into manifests."""

    ref: str
    """the reference it was loaded by"""
    revision: str
    """commit on the Hub, or sha256 over configuration, tokenizer and weights of a folder"""
    family: str
    """model_type of the transformers configuration: gpt2, gpt_neox, llama, ..."""
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    dtype: str
    device: str
    quantisation: str = ""
    """of the file the weights were read from, as "q4_1->f32"; "" where they are the model's own"""
    norm: str = "layer"
    """kind of its norms: layer (which centres) or rms"""
    named: str = ""
    """the Hub id that the configuration of a local folder names; "" if it names none"""


@runtime_checkable
class WhiteBoxModel(Protocol):
    """A causal LM with an inside."""

    spec: ModelSpec

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Input embedding (scaled as the model scales it)."""
        ...

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        """Unembedding rows; logits = final_norm(h) @ W_U.T (+ bias, softcap where the family has them)."""
        ...

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]:
        """Token ids of `text` without any special token but, if asked for, one BOS in front."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token alone, as text: leading space kept, undecodable bytes as U+FFFD."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    def sites(self) -> list[Site]:
        """Every site that this model has."""
        ...

    def site_width(self, site: Site) -> int:
        """Width of the activation at `site`. Raises SiteError if the family does not have it."""
        ...

    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = (), *, last_only: bool = False
    ) -> Float[Tensor, "batch pos_out d_vocab"]:
        """Logits (float32) with the edits applied; only of the last position if `last_only` (pos_out = 1)."""
        ...

    def capture(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], edits: Sequence[Edit] = ()
    ) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """Activations at `sites` (float32, detached), after the edits at the same site; stops after the
        last site."""
        ...

    def vjp(
        self,
        tokens: Int[Tensor, "batch pos"],
        site: Site,
        cotangent: Float[Tensor, "batch d_vocab"],
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "batch pos d"]:
        """Gradient of sum_t cotangent[b, t] * logits[b, last, t] with respect to the activation at `site`,
        taken where the edits have brought the model."""
        ...

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Sequence[Edit] = (),
        *,
        n: int,
        scope: Scope = "both",
        temperature: float = 1.0,
        seed: int = 0,
        draws: Sequence[int] | None = None,
        keep_logits: bool = False,
        told: Told | None = None,
    ) -> Generated:
        """n tokens behind every prompt under edits, whose masks cover the prompt; `models.generate` says where they reach
        and what chance is."""
        ...


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice from transformers while it loads: what matters of it is raised here as an
    error."""
    from transformers.utils import logging as talk

    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()
