"""Prompt injection: tokens put into the prompt, nothing edited inside (arXiv 2505.11611, section 3.5).

A recipe holds two token lists of one length: a snippet on which a feature fires, and its match, a list of other
tokens alike in form and frequency. Dose +1 injects the snippet, dose -1 the match, so the odd part of an effect is
half the difference between the two, and what any prefix of that length does drops out. All lists of a plan have
one length, because rows of a forward pass have.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import (
    UNMATCHED,
    EditedPrompt,
    Forward,
    Intervention,
    Realise,
    Recipe,
    Refused,
    SiteContext,
    Steer,
)
from polysem.config import PlanConfig
from polysem.seeds import rng_for
from polysem.vocabulary import RELATIONS

MARKS = {"prefix": ("", ""), "suffix": ("", ""), "wrapped": ("**", "**"), "parenthesised": ("(", ")")}
"""form -> what stands before and after the snippet"""


class PromptInjection(Intervention):
    """The locus `prompt`."""

    inside_text = True

    @property
    def kinds(self) -> Mapping[str, Realise]:
        """Token ids [2 1+n], int64: the snippet and its match."""
        return {"snippet": snippet}

    def prepare(self, steers: Sequence[Steer], prompt: EditedPrompt, context: SiteContext) -> Forward:
        """A prompt per row, with the snippet where the dose is positive and the match where it is negative.

        Raises:
            Refused: `prompt_too_long` if the model's context does not hold both.
        """
        start, stop = _own_text(prompt, context)
        rows = [_with(prompt.token_ids, steer, start=start, stop=stop) for steer in steers]
        if len(rows[0]) > context.spec.n_ctx:
            raise Refused("prompt_too_long")
        return Forward(torch.tensor(rows, dtype=torch.long, device=context.spec.device), [])

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """Every feature as the injection of a snippet on which it fires."""
        carried = [arm for arm in request.arms if RELATIONS[arm.relation].carried == "source"]
        return [arm._replace(recipe=self._recipe(arm, request)) for arm in carried]

    def _recipe(self, arm: Arm, request: ArmsRequest) -> str:
        if arm.source is None:
            return UNMATCHED
        index, plan = request.index, request.plan
        own = index.tokens_in[arm.target] | index.tokens_out[arm.target]
        # a target's own snippet holds its tokens, or it would not be its snippet
        avoided = () if arm.relation == "self" else own
        tokens = index.contexts.snippet(arm.source, plan.snippet_tokens, without=avoided)
        rng = rng_for(request.seed, "match", index.label, arm.target, arm.source)
        match = tokens and index.contexts.match(tokens, rng, without=own)
        if not tokens or not match:
            return UNMATCHED
        texts = {"match": " ".join(map(str, match)), "tokens": " ".join(map(str, tokens))}
        return Recipe.of("snippet", form=plan.snippet_form, **texts).text

    def doses(self, plan: PlanConfig) -> tuple[tuple[float, ...], str]:
        return (1.0,), "injection"


PROMPT = PromptInjection()


def snippet(recipe: Recipe, context: SiteContext) -> np.ndarray:
    """The snippet and its match, [2 1+n]: where they go (0 in front of the prompt, 1 after it), then token ids.

    Raises:
        Refused: `no_round_trip` if the text of either list is read back as other tokens: nobody could type it.
    """
    model = context.with_model("the locus prompt")
    form = recipe.text_of("form")
    lists: list[list[int]] = []
    for name in ("tokens", "match"):
        ids = recipe.token_ids(name)
        if max(ids) >= context.spec.d_vocab:
            raise Refused("prompt_out_of_vocab")
        if model.tokenize(model.detokenize(ids), prepend_bos=False) != ids:
            raise Refused("no_round_trip")
        before, after = (model.tokenize(mark, prepend_bos=False) if mark else [] for mark in MARKS[form])
        ids = [*before, *ids, *after]
        lists.append([int(form == "suffix"), *ids])
    return np.array(lists, dtype=np.int64)


def _with(token_ids: Sequence[int], steer: Steer, *, start: int, stop: int) -> list[int]:
    """The prompt with what the row injects, at one end of its own text."""
    after, *ids = steer.realised[0 if steer.dose > 0 else 1].tolist()
    at = stop if after else start
    return [*token_ids[:at], *ids, *token_ids[at:]]


def _own_text(prompt: EditedPrompt, context: SiteContext) -> tuple[int, int]:
    """Where the prompt's own text begins and ends: inside a chat template, or from after the BOS to the end."""
    if prompt.text_span is not None:
        return prompt.text_span
    bos = None if context.model is None else context.model.bos_id
    return int(bool(prompt.token_ids) and prompt.token_ids[0] == bos), len(prompt.token_ids)
