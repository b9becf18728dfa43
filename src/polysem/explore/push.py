"""One push: next tokens before and after, the dose that gives a KL, both continuations.

Works on any study's model through the seams of `models` and `interventions`; torch is imported when a push
begins.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from polysem.errors import ConfigError

if TYPE_CHECKING:
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE
else:  # importing them would import torch
    WhiteBoxModel = SAE = Any

MAX_SCALE = 4.0
"""largest dose tried, x mean norm of the site"""
SNIPPET = 8
"""tokens of an injected snippet"""
SHOWN = 12
"""most likely tokens shown, before and after"""
KL_WITHIN = 0.02
"""a dose asked for in KL is met within this share of it"""
_KL_STEPS = 24


class Asked(BaseModel):
    """One push."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    sae: str
    source: Annotated[int, Field(ge=0)]
    target: Annotated[int, Field(ge=0)]
    locus: Literal["feature", "gradient", "prompt", "neuron"]
    """with `neuron`, source is the number of a coordinate of the site"""
    unit: Literal["scale", "kl"]
    dose: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
    """in scale: x mean norm of the site, of a neuron the relative change, of a prompt nothing; or nats, above 0"""
    n_tokens: Annotated[int, Field(ge=0, le=64)] = 24

    @model_validator(mode="after")
    def _kl_is_positive(self):
        if self.unit == "kl" and self.dose <= 0:
            raise ValueError("a KL is above 0")
        if self.unit == "kl" and self.locus == "prompt":
            raise ValueError("an injection has no dose that could be set to a KL; give scale")
        return self

    @classmethod
    def parse(cls, asked: Any) -> "Asked":
        """The push of a request. Raises ConfigError, saying what was expected."""
        try:
            return cls.model_validate(asked)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "the request"
            raise ConfigError(f"{name}: {first['msg']} (got {str(first['input'])[:60]!r})") from error


class Push:
    """One push at work. `show` is given every result as it grows, and ends the work by raising."""

    def __init__(
        self,
        asked: Asked,
        *,
        model: WhiteBoxModel,
        sae: SAE,
        source: dict[str, Any] | None,
        target: dict[str, Any],
        show: Callable[[dict[str, Any] | None], None],
    ):
        """See the prompt without a push.

        Raises:
            ConfigError: if the prompt is too short or too long.
            Refused: if the source has no direction, or none of its contexts can be used.
        """
        from polysem.interventions.base import LOCI, Bench
        from polysem.interventions.feature import decoder_row, unit

        self.asked, self.model, self.target, self.show = asked, model, target, show
        self.bench = Bench(asked.sae, sae, model.spec, activations=_none, model=model)
        self.intervention = LOCI[asked.locus]
        self.realised = self.intervention.realise(recipe_of(asked, source), self.bench)
        steers = self.intervention.steers
        aligned = self.realised @ unit(decoder_row(self.bench, asked.target)) if steers else None
        self.alignment = None if aligned is None else float(aligned)
        self.ids = model.tokenize(asked.prompt, prepend_bos=sae.prepend_bos)
        if not 2 <= len(self.ids) <= model.spec.n_ctx:
            raise ConfigError(f"the prompt has {len(self.ids)} tokens; expected 2 to {model.spec.n_ctx}")
        self.norm = self._site_norm()
        self.before = self._logits(self.ids, None)

    def run(self) -> None:
        """Next token before and after, then both continuations."""
        dose, after = self._dosed()
        result = self._result(dose, after)
        self.show(result)
        for text, scale in (("text_before", None), ("text_after", dose)):
            for written in self._generated(scale):
                result = {**result, text: written}
                self.show(result)

    def _site_norm(self) -> float:
        import torch

        site = self.bench.sae.site
        tokens = torch.as_tensor([self.ids], device=self.model.spec.device)
        return float(self.model.capture(tokens, [site])[site][0, 1:].double().norm(dim=-1).mean())

    def _logits(self, ids: list[int], scale: float | None) -> Any:
        """Last-position logits [1 d_vocab] in float64; pushed by `scale` x the prompt's mean norm."""
        import torch

        from polysem.interventions import base

        self.show(None)
        if scale is None:
            tokens, edits = torch.as_tensor([ids], device=self.model.spec.device), []
        else:
            prompt = base.Prompt(tuple(ids), base.edited_positions("all_but_first", len(ids)))
            push = base.Push(self.realised, self._strength(scale))
            tokens, edits = self.intervention.prepare([push], prompt, self.bench)
        return self.model.logits(tokens, edits, last_only=True)[:, -1].cpu().double()

    def _strength(self, scale: float) -> float:
        """The dose as the intervention takes it."""
        match self.asked.locus:
            case "prompt":
                return 1.0
            case "neuron":
                return scale
            case _:
                return scale * self.norm

    def _kl(self, after: Any) -> float:
        from polysem.readouts import kl

        return float(kl(self.before[0], after[0]))

    def _dosed(self) -> tuple[float, Any]:
        """The dose (x mean norm) and the logits there; by secant steps where a KL is asked for."""
        if self.asked.unit == "scale":
            return self.asked.dose, self._logits(self.ids, self.asked.dose)
        return dose_for_kl(lambda scale: self._logits(self.ids, scale), self._kl, self.asked.dose)

    def _result(self, dose: float, after: Any) -> dict[str, Any]:
        asked = self.asked
        before_logp, after_logp = (z.log_softmax(-1)[0] for z in (self.before, after))
        sets = {"in": self.target["tokens_in"], "out": self.target["tokens_out"]}
        wanted = [*before_logp.topk(SHOWN).indices.tolist(), *after_logp.topk(SHOWN).indices.tolist()]
        best = sorted(
            {t for ids in sets.values() for t in ids if 0 <= t < len(before_logp)},
            key=lambda t: -float(after_logp[t]),
        )
        shown = sorted({*wanted, *best[: SHOWN // 2]}, key=lambda t: (-float(after_logp[t]), t))
        words = self.model.token_strings(shown)
        tokens = [
            {
                "id": token,
                "text": word,
                "before": float(before_logp[token].exp()),
                "after": float(after_logp[token].exp()),
                "before_logp": float(before_logp[token]),
                "after_logp": float(after_logp[token]),
                "target": "+".join(name for name, ids in sets.items() if token in ids),
            }
            for token, word in zip(shown, words, strict=True)
        ]
        return {
            **{name: getattr(asked, name) for name in ("prompt", "sae", "source", "target", "locus")},
            "dose": dose,
            "asked_kl": asked.dose if asked.unit == "kl" else None,
            "norm": self.norm,
            "kl": self._kl(after),
            "alignment": self.alignment,
            "tokens": tokens,
            "sets": [self._odds(name, ids, after) for name, ids in sets.items()],
            "text_before": "",
            "text_after": "",
        }

    def _odds(self, name: str, ids: list[int], after: Any) -> dict[str, Any]:
        from polysem.readouts import log_odds

        if not ids:
            return {"name": name, "reason": "the target has no tokens of that kind"}
        values = [float(log_odds(z[0], ids)) for z in (self.before, after)]
        return {"name": name, "before": values[0], "after": values[1], "reason": None}

    def _generated(self, scale: float | None) -> Iterator[str]:
        """The greedy continuation, longer by one token each time."""
        ids, room = list(self.ids), self.model.spec.n_ctx - len(self.ids)
        for _ in range(min(self.asked.n_tokens, room)):
            ids.append(int(self._logits(ids, scale).argmax()))
            yield self.model.detokenize(ids[len(self.ids) :])


def recipe_of(asked: Asked, source: dict[str, Any] | None) -> Any:
    """How the push is made, as a plan would write it; texts are those on which the source fires most.

    Raises:
        ConfigError: if the feature table holds no token ids of such a text.
    """
    from polysem.interventions.base import Recipe

    if asked.locus == "feature":
        return Recipe.of("decoder", feature=asked.source)
    if asked.locus == "neuron":
        return Recipe.of("neuron", neuron=asked.source)
    best = next((c for c in (source or {}).get("contexts", []) if c["token_ids"]), None)
    if best is None:
        raise ConfigError(
            f"feature {asked.source} has no context with token ids", hint="push it at the locus feature"
        )
    ids, peak = best["token_ids"], best["position"]
    if asked.locus == "gradient":
        text = " ".join(map(str, ids[: peak + 1]))
        return Recipe.of("gradient", feature=asked.source, position=peak, probe="encoder", tokens=text)
    snippet = " ".join(map(str, ids[max(0, peak - SNIPPET + 1) : peak + 1]))
    return Recipe.of("snippet", form="prefix", match=snippet, tokens=snippet)


def dose_for_kl(
    logits: Callable[[float], Any], measure: Callable[[Any], float], wanted: float
) -> tuple[float, Any]:
    """The positive dose whose KL is `wanted` within KL_WITHIN, and its logits.

    KL grows like the square of a small dose, so steps are secants of log KL against log dose, kept inside the
    bracket found so far.

    Raises:
        ConfigError: if no dose up to the largest that is tried gives as much.
    """
    low, high = 0.0, MAX_SCALE
    scale, slope = 0.1, 2.0
    last: tuple[float, float] | None = None
    for _ in range(_KL_STEPS):
        after = logits(scale)
        seen = measure(after)
        if abs(seen - wanted) <= KL_WITHIN * wanted:
            return scale, after
        low, high = (scale, high) if seen < wanted else (low, scale)
        if low >= MAX_SCALE:
            raise ConfigError(
                f"even {MAX_SCALE:g} x the mean norm gives only {seen:.3g} nats, not {wanted:.3g}",
                hint="ask for less, or give a scale",
            )
        if last is not None and seen > 0 and last[1] > 0 and scale != last[0]:
            slope = min(4.0, max(0.5, math.log(seen / last[1]) / math.log(scale / last[0])))
        last = (scale, seen)
        guess = scale * (wanted / seen) ** (1 / slope) if seen > 0 else 2 * scale
        # Outside the bracket: the largest dose as long as nothing too strong was seen, else the middle.
        middle = MAX_SCALE if high == MAX_SCALE else math.sqrt(max(low, high / 64) * high)
        scale = guess if low < guess < high else middle
    raise ConfigError(
        f"no dose gives {wanted:.3g} nats within {100 * KL_WITHIN:g} %", hint="give a scale instead"
    )


def _none() -> Any:
    raise ConfigError("covariance controls are not pushed live")
