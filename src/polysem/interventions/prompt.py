"""Prompt injection: tokens put into the prompt, nothing edited inside (arXiv 2505.11611, section 3.5).

A recipe holds two token lists of one length: a snippet on which a feature fires, and its match, a list of other
tokens alike in form and frequency. Dose +1 injects the snippet, dose -1 the match, so the odd part of an effect is
half the difference between the two, and what any prefix of that length does drops out. All lists of a plan have
one length, because rows of a forward pass have.
"""

from collections.abc import Sequence

import numpy as np
import torch

from polysem.errors import MismatchError
from polysem.interventions.base import KINDS, Bench, Prepared, Prompt, Push, Recipe, Refused

MARKS = {"prefix": ("", ""), "suffix": ("", ""), "wrapped": ("**", "**"), "parenthesised": ("(", ")")}
"""form -> what stands before and after the snippet"""


class PromptInjection:
    """The locus `prompt`."""

    steers = False

    def realise(self, recipe: Recipe, bench: Bench) -> np.ndarray:
        """Token ids [2 n], int64: the snippet and its match. Raises: Refused."""
        return KINDS[recipe.kind](recipe, bench)

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """A prompt per push, with the snippet where the dose is positive and the match where it is negative.

        Raises:
            Refused: `prompt_too_long` if the model's context does not hold both.
        """
        start, stop = _own_text(prompt, bench)
        rows = [_with(prompt.token_ids, push, start=start, stop=stop) for push in pushes]
        if len(rows[0]) > bench.spec.n_ctx:
            raise Refused("prompt_too_long")
        tokens = torch.tensor(rows, dtype=torch.long, device=bench.spec.device)
        return Prepared(tokens=tokens, edits=[])


PROMPT = PromptInjection()


def snippet(recipe: Recipe, bench: Bench) -> np.ndarray:
    """The snippet and its match, [2 1+n]: where they go (0 in front of the prompt, 1 after it), then token ids.

    Raises:
        Refused: `no_round_trip` if the text of either list is read back as other tokens: nobody could type it.
    """
    if bench.model is None:
        raise MismatchError("the locus prompt needs the model's tokenizer, but the bench has no model")
    form = recipe.text_of("form")
    lists = []
    for name in ("tokens", "match"):
        ids = recipe.token_ids(name)
        if max(ids) >= bench.spec.d_vocab:
            raise Refused("prompt_out_of_vocab")
        if bench.model.tokenize(bench.model.detokenize(ids), prepend_bos=False) != ids:
            raise Refused("no_round_trip")
        before, after = (
            bench.model.tokenize(mark, prepend_bos=False) if mark else [] for mark in MARKS[form]
        )
        ids = [*before, *ids, *after]
        lists.append([int(form == "suffix"), *ids])
    return np.array(lists, dtype=np.int64)


def _with(token_ids: Sequence[int], push: Push, *, start: int, stop: int) -> list[int]:
    """The prompt with what the push injects, at one end of its own text."""
    after, *ids = push.realised[0 if push.dose > 0 else 1].tolist()
    at = stop if after else start
    return [*token_ids[:at], *ids, *token_ids[at:]]


def _own_text(prompt: Prompt, bench: Bench) -> tuple[int, int]:
    """Where the prompt's own text begins and ends: inside a chat template, or from after the BOS to the end."""
    if prompt.text_span is not None:
        return prompt.text_span
    bos = None if bench.model is None else bench.model.bos_id
    return int(bool(prompt.token_ids) and prompt.token_ids[0] == bos), len(prompt.token_ids)
