"""Steering once: next tokens before and after, the dose that gives a KL, both continuations.

Works on any study's model through the seams of `models` and `act`; torch is imported when it
begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from polysem.act.dosing import TOLERANCE, doses_at_kl
from polysem.errors import ConfigError
from polysem.positions import PLAIN, mean_norm, positions_of
from polysem.vocabulary import REASONS, TOKEN_SETS

if TYPE_CHECKING:
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE
else:  # importing them would import torch
    WhiteBoxModel = SAE = Any

MAX_SCALE = 4.0
"""largest dose tried, x mean norm of the site"""
MAX_MORE = 7
"""pushes beside the first"""
SNIPPET = 8
"""tokens of an injected snippet"""
SHOWN = 12
"""most likely tokens shown, before and after"""
FIRST_SCALE = 0.1
"""tried first where a KL is asked for"""
NOTHING = 1e-9
"""x mean norm: less than this is no push"""
KL_WITHIN = TOLERANCE
"""a dose asked for in KL is met within this share of it"""


@dataclass(frozen=True)
class LiveLocus:
    """A locus that can be steered live, from what is stored of a feature."""

    words: str
    recipe: Callable[["Asked", dict[str, Any] | None], Any]
    strength: Callable[[float, float], float]
    """(dose as asked for, mean norm of the site) -> the dose as the intervention takes it"""
    from_feature: bool = True
    """whether its source is a feature"""


def _live(name: str) -> str:
    if name not in LIVE:
        raise ValueError(f"unknown locus {name!r}; expected one of {', '.join(LIVE)}")
    return name


R = TypeVar("R", bound=BaseModel)


class Request(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def parse(cls: type[R], asked: Any) -> R:
        """Of JSON. Raises ConfigError, saying what was expected."""
        try:
            return cls.model_validate(asked)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "the request"
            raise ConfigError(f"{name}: {first['msg']} (got {str(first['input'])[:60]!r})") from error


class Also(Request):
    """One push more, along a feature of the same SAE."""

    source: Annotated[int, Field(ge=0)]
    dose: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
    """x mean norm of the site"""


class Asked(Request):
    """What is asked for."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    sae: str
    source: Annotated[int, Field(ge=0)]
    target: Annotated[int, Field(ge=0)]
    locus: Annotated[str, AfterValidator(_live)]
    """with `neuron`, source is the number of a coordinate of the site"""
    unit: Literal["scale", "kl"]
    dose: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
    """in scale: x mean norm of the site, of a neuron the relative change, of a prompt nothing; or nats, above 0"""
    n_tokens: Annotated[int, Field(ge=0, le=64)] = 24
    more: Annotated[list[Also], Field(max_length=MAX_MORE)] = []
    """pushes at the same time"""

    @model_validator(mode="after")
    def _kl_is_positive(self):
        if self.unit == "kl" and self.dose <= 0:
            raise ValueError("a KL is above 0")
        if self.unit == "kl" and self.locus == "prompt":
            raise ValueError("an injection has no dose that could be set to a KL; give scale")
        if self.more and (self.locus, self.unit) != ("feature", "scale"):
            raise ValueError("several at once are pushed at the locus feature, with doses in scale")
        return self


class LiveSteer:
    """Steering at work. `show` is given the one result each time that it has grown, and ends the work by raising."""

    def __init__(
        self,
        asked: Asked,
        *,
        model: WhiteBoxModel,
        sae: SAE,
        source: dict[str, Any] | None,
        target: dict[str, Any],
        positions: str = "all_but_first",
        show: Callable[[dict[str, Any] | None], None],
    ):
        """See the prompt without steering.

        Raises:
            ConfigError: if the prompt is too short or too long.
            Refused: if the source has no direction, or none of its contexts can be used.
        """
        from polysem.act.base import SiteContext, decoder_row, intervention, unit

        self.asked, self.model, self.target, self.show = asked, model, target, show
        self.positions = positions
        self.bench = SiteContext(asked.sae, sae, model.spec, activations=_none, model=model)
        self.intervention = intervention(asked.locus)
        self.realised = self.intervention.realise(LIVE[asked.locus].recipe(asked, source), self.bench)
        self.dose = asked.dose
        self.singles = [(asked.source, asked.dose, self.realised)]
        if asked.more:
            self._join()
        steers = self.intervention.steers
        aligned = self.realised @ unit(decoder_row(self.bench, asked.target)) if steers else None
        self.alignment = None if aligned is None else float(aligned)
        self.ids = positions_of(model, sae).row(model.tokenize(asked.prompt, prepend_bos=False))
        if not 2 <= len(self.ids) <= model.spec.n_ctx:
            raise ConfigError(f"the prompt has {len(self.ids)} tokens; expected 2 to {model.spec.n_ctx}")
        self.norm = self._site_norm()
        self.before = self._logits(self.ids, None)

    def _join(self) -> None:
        """Make one push of several: their sum, as they are all added at the same site."""
        for one in self.asked.more:
            recipe = _recipe("decoder", feature=one.source)
            self.singles.append((one.source, one.dose, self.intervention.realise(recipe, self.bench)))
        together = np.sum([dose * direction for _, dose, direction in self.singles], axis=0)
        self.dose = float(np.linalg.norm(together))
        if self.dose < NOTHING:
            raise ConfigError("these pushes cancel each other", hint="change a dose")
        self.realised = together / self.dose

    def run(self) -> None:
        """Next token before and after, then both continuations, the steered one first."""
        dose, after = self._dosed()
        result = self._result(dose, after)
        if self.asked.more:
            result |= self._added(after)
        self.show(result)
        for text, scale in (("text_after", dose), ("text_before", None)):
            self._write(result, text, scale)

    def _site_norm(self) -> float:
        import torch

        site = self.bench.sae.writes
        tokens = torch.as_tensor([self.ids], device=self.model.spec.device)
        norms = self.model.capture(tokens, [site])[site][0].double().norm(dim=-1).cpu().numpy()
        return mean_norm(norms, PLAIN.counted(len(norms)))

    def _logits(self, ids: list[int], scale: float | None, direction: Any = None) -> Any:
        """Last-position logits [1 d_vocab] in float64."""
        self.show(None)
        tokens, edits = self._edited(ids, scale, direction)
        return self.model.logits(tokens, edits, last_only=True)[:, -1].cpu().double()

    def _edited(self, ids: list[int], scale: float | None, direction: Any = None) -> tuple[Any, Any]:
        """Tokens [1 pos] and edits: steered by `scale` x the prompt's mean norm along a direction, the one that is asked for
        where none is given; not steered where there is no scale."""
        import torch

        from polysem.act import base

        if scale is None:
            return torch.as_tensor([ids], device=self.model.spec.device), []
        prompt = base.EditedPrompt(tuple(ids), base.edited_positions(self.positions, len(ids)))
        along = self.realised if direction is None else direction
        steer = base.Steer(along, LIVE[self.asked.locus].strength(scale, self.norm))
        return self.intervention.prepare([steer], prompt, self.bench)

    def _kl(self, after: Any) -> float:
        from polysem.readouts import kl

        return float(kl(self.before[0], after[0]))

    def _dosed(self) -> tuple[float, Any]:
        """The dose (x mean norm) and the logits there; by secant steps where a KL is asked for."""
        if self.asked.unit == "scale":
            return self.dose, self._logits(self.ids, self.dose)
        return dose_for_kl(lambda scale: self._logits(self.ids, scale), self._kl, self.asked.dose)

    def _result(self, dose: float, after: Any) -> dict[str, Any]:
        asked = self.asked
        before_logp, after_logp = (z.log_softmax(-1)[0] for z in (self.before, after))
        sets = {name: self.target[tokens.column] for name, tokens in TOKEN_SETS.items()}
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
            "positions": self.positions,
            "kl": self._kl(after),
            "alignment": self.alignment,
            "tokens": tokens,
            "sets": [self._odds(name, ids, after) for name, ids in sets.items()],
            "text_before": "",
            "text_after": "",
        }

    def _added(self, after: Any) -> dict[str, Any]:
        """What each push does alone, what their sum predicts, and how much of the joint change of logits (less their mean,
        which means nothing) the sum does not say."""
        alone = [self._logits(self.ids, dose, direction) for _, dose, direction in self.singles]
        moved, *single = (z[0] - self.before[0] for z in (after, *alone))
        missed, moved = (z - z.mean() for z in (moved - sum(single), moved))
        size = float((moved**2).sum())
        return {
            "alone": [
                {
                    "source": source,
                    "dose": dose,
                    "kl": self._kl(z),
                    "sets": [self._odds(n, self.target[t.column], z) for n, t in TOKEN_SETS.items()],
                }
                for (source, dose, _), z in zip(self.singles, alone, strict=True)
            ],
            "unexplained": float((missed**2).sum()) / size if size else None,
        }

    def _odds(self, name: str, ids: list[int], after: Any) -> dict[str, Any]:
        from polysem.readouts import log_odds

        if not ids:
            return {"name": name, "reason": REASONS["empty_target_set"].label}
        values = [float(log_odds(z[0], ids)) for z in (self.before, after)]
        return {"name": name, "before": values[0], "after": values[1], "reason": None}

    def _write(self, result: dict[str, Any], text: str, scale: float | None) -> None:
        """The greedy continuation, put into the result token by token."""
        tokens, edits = self._edited(self.ids, scale)

        def told(drawn: Any) -> None:
            result[text] = self.model.detokenize(drawn[0].tolist())
            self.show(result)

        n = min(self.asked.n_tokens, self.model.spec.n_ctx - tokens.shape[1])
        if n > 0:
            found = self.model.generate(tokens, edits, n=n, temperature=0.0, told=told)
            result[f"read_{text}"] = self._read(found.tokens[0].tolist())
            self.show(result)

    def _read(self, drawn: list[int]) -> dict[str, Any]:
        """A continuation token by token, and how much the target fires on each when the model without a push reads it."""
        import torch

        from polysem.behaviour.texts import read_texts

        rows = torch.as_tensor([self.ids + drawn])
        read = read_texts(self.model, self.bench.sae, [self.asked.target], rows, prompt=len(self.ids))
        return {"tokens": self.model.token_strings(drawn), "values": read.acts[0, :, 0].tolist()}


def _recipe(kind: str, **fields: Any) -> Any:
    from polysem.act.base import Recipe

    return Recipe.of(kind, **fields)


def _fires(asked: Asked, source: dict[str, Any] | None) -> tuple[list[int], int]:
    """Token ids of the text on which the source fires most, and where it does.

    Raises:
        ConfigError: if the feature table holds no token ids of such a text.
    """
    best = next((c for c in (source or {}).get("contexts", []) if c["token_ids"]), None)
    if best is None:
        raise ConfigError(
            f"feature {asked.source} has no context with token ids", hint="steer at the locus feature"
        )
    return best["token_ids"], best["position"]


def _gradient(asked: Asked, source: dict[str, Any] | None) -> Any:
    ids, peak = _fires(asked, source)
    text = " ".join(map(str, ids[: peak + 1]))
    return _recipe("gradient", feature=asked.source, position=peak, probe="encoder", tokens=text)


def _snippet(asked: Asked, source: dict[str, Any] | None) -> Any:
    ids, peak = _fires(asked, source)
    snippet = " ".join(map(str, ids[max(0, peak - SNIPPET + 1) : peak + 1]))
    return _recipe("snippet", form="prefix", match=snippet, tokens=snippet)


LIVE = {
    "feature": LiveLocus(
        "feature direction",
        lambda asked, _: _recipe("decoder", feature=asked.source),
        lambda dose, norm: dose * norm,
    ),
    "gradient": LiveLocus("token gradient (of its top context)", _gradient, lambda dose, norm: dose * norm),
    "neuron": LiveLocus(
        "neuron (a coordinate of the site)",
        lambda asked, _: _recipe("neuron", neuron=asked.source),
        lambda dose, _: dose,
        from_feature=False,
    ),
    "prompt": LiveLocus("prompt (its top context in front)", _snippet, lambda *_: 1.0),
}
"""locus -> how it is steered live"""


def dose_for_kl(
    logits: Callable[[float], Any], measure: Callable[[Any], float], wanted: float
) -> tuple[float, Any]:
    """The positive dose whose KL is `wanted` within KL_WITHIN, and its logits.

    Raises:
        ConfigError: if no dose up to the largest that is tried gives as much.
    """
    tried: list[tuple[float, Any]] = []

    def at(_: np.ndarray, strength: np.ndarray) -> np.ndarray:
        scale = min(float(strength[0]), MAX_SCALE)
        tried.append((scale, logits(scale)))
        return np.array([measure(tried[-1][1])])

    found = doses_at_kl(at, np.array([wanted]), np.array([FIRST_SCALE]))
    if found.reached[0]:
        return tried[-1]
    if tried[-1][0] >= MAX_SCALE:
        raise ConfigError(
            f"even {MAX_SCALE:g} x the mean norm gives only {float(found.kl[0]):.3g} nats, not {wanted:.3g}",
            hint="ask for less, or give a scale",
        )
    raise ConfigError(
        f"no dose gives {wanted:.3g} nats within {100 * KL_WITHIN:g} %", hint="give a scale instead"
    )


def _none() -> Any:
    raise ConfigError("covariance controls are not for live steering")
