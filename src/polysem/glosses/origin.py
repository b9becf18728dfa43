"""Which SAE a row of a gloss file speaks of, and whether that is the SAE at hand.

Sources name SAEs in their own ways: Neuronpedia `gpt2-small` + `6-res_post_32k-oai` (layer, kind, set),
sparse feature circuits `resid_5/3036`, output-centric tables `Layer`, `Sae Type`, delphi only a layer. All
become an `Origin`. It is compared with what the reader of the file expects: a name given by the user, or the
site and model of the SAE.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from polysem.errors import MismatchError
from polysem.types import Site

Kind = Literal["res", "mlp", "att", "embed", "neuron"]

_KINDS: tuple[tuple[str, Kind], ...] = (
    ("resid", "res"),
    ("res", "res"),
    ("mlp", "mlp"),
    ("attn", "att"),
    ("attention", "att"),
    ("att", "att"),
    ("embed", "embed"),
)
_SAME_MODEL = {"gpt2small": "gpt2", "gpt2sm": "gpt2"}


class Origin(NamedTuple):
    """The SAE that a row names; None where the row does not say."""

    model: str | None
    name: str | None
    """the source's own name of the SAE: `6-res-jb`, `resid_5`, `14-mlp-32k`, `0`"""
    layer: int | None
    kind: Kind | None

    def __str__(self) -> str:
        return "/".join(part for part in (self.model, self.name) if part) or "(unnamed)"

    def answers(self, expected: str) -> bool:
        """Whether a user who wrote `expected` (`model/name`, `name` or `model`) meant this one."""
        return expected in {self.name, self.model, f"{self.model}/{self.name}"}

    def fits(self, *, site: Site | None, model_id: str | None) -> bool:
        """Whether nothing that the row says contradicts the SAE's site and model."""
        return _model_fits(self.model, model_id) and (site is None or self._site_fits(site))

    def _site_fits(self, site: Site) -> bool:
        if self.kind == "embed":
            return str(site) in {"hook_embed", "blocks.0.hook_resid_pre"}
        kind = _kind_of_site(site)
        if self.kind is not None and kind is not None and self.kind != kind:
            return False
        if self.layer is None:
            return True
        return self.layer in self._layers_of(site)

    def _layers_of(self, site: Site) -> set[int | None]:
        """Layer numbers under which a source files `site`: `12-res-jb`, before a block 12, is "
        "the end of block 11."""
        before = self.name and (self.name.endswith("-res-jb") or "resid_pre" in self.name)
        if before and site.point == "hook_resid_post":
            return {None if site.layer is None else site.layer + 1}
        if self.name and "resid_post" in self.name and site.point == "hook_resid_pre":
            return {None if site.layer is None else site.layer - 1}
        return {site.layer}


def origin_of(*, model: object = None, layer: object = None, kind: object = None) -> Origin:
    """The origin of a row's fields, as they stand in the file.

    Args:
        model: name of the model.
        layer: Neuronpedia source id (`6-res-jb`), or a layer number as int or str.
        kind: type of site, where it has a column of its own (`res`, `mlp`, `attn`, `embed`).
    """
    label = _text(layer)
    family = _text(kind)
    if family is not None and label is not None and label.isdigit():
        name: str | None = f"{label}-{family}"
    else:
        name = label if label is not None else family
    return Origin(_text(model), name, _layer_in(name), _kind_in(name))


def origin_of_sae(name: str, *, model: object = None) -> Origin:
    """The origin of a whole name of an SAE: `gpt2-small/6-res-jb`, `gpt2-small-res-jb/blocks.6.hook_resid_pre`,
    `layer_6/width_16k`, `blocks.6.mlp.hook_post`."""
    head, _, tail = name.strip().rpartition("/")
    if head and re.match(r"\d+-", tail):  # Neuronpedia's: model, then source
        return origin_of(model=model or head, layer=tail)
    layer = re.search(r"(?:blocks|layers?|h)[._-](\d+)(?:\D|$)", name)
    origin = origin_of(model=model, layer=name)
    kind = next(
        (kind for word, kind in _KINDS if re.search(rf"(?<![a-z]){word}(?![a-z])", name.lower())), origin.kind
    )
    return origin._replace(layer=int(layer[1]) if layer else origin.layer, kind=kind)


def choose(
    origins: Iterable[Origin], *, expected: str | None, site: Site | None, model_id: str | None, file: str
) -> set[Origin]:
    """The origins of one file whose rows are to be kept. Rows that name no SAE are always kept.

    Raises:
        MismatchError: if the file names SAEs and none of them, or more than one, is the one at hand.
    """
    every = set(origins)
    named = {o for o in every if o.name is not None or o.model is not None}
    if not named:
        return every
    if expected is not None:
        chosen = {o for o in named if o.answers(expected)}
        wanted = repr(expected)
    else:
        chosen = {o for o in named if o.fits(site=site, model_id=model_id)}
        wanted = " of ".join(filter(None, (str(site) if site else "", model_id or ""))) or "one SAE"
    if len(chosen) == 1:
        return chosen | (every - named)
    listed = ", ".join(sorted(map(str, chosen or named))[:12])
    problem = "several SAEs that fit" if chosen else "another SAE"
    raise MismatchError(
        f"{file} holds glosses of {problem}: it names "
        f"{listed}{' ...' if len(chosen or named) > 12 else ''}; expected {wanted}",
        hint=f"name the SAE of the file that is meant, e.g. glosses = 'file:{file}#{min(map(str, chosen or named))}', or give "
        "the right file",
    )


def _text(value: object) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def _layer_in(name: str | None) -> int | None:
    """The layer number in a name: leading (`6-res-jb`) or trailing (`resid_5`)."""
    match = name and (re.match(r"(\d+)(?:-|$)", name) or re.search(r"^[a-z]+_(\d+)$", name))
    return int(match.group(1)) if match else None


def _kind_in(name: str | None) -> Kind | None:
    if name is None:
        return None
    if name.startswith("neuron"):
        return "neuron"
    words = re.split(r"[-_. ]", name.lower())
    if words[0] == "e":  # Neuronpedia's name of the embedding: `e-res-sm`
        return "embed"
    return next((kind for word, kind in _KINDS if word in words), None)


def _kind_of_site(site: Site) -> Kind | None:
    if site.layer is None:
        return "embed"
    for part, kind in (("resid", "res"), ("attn", "att"), ("mlp", "mlp")):
        if part in site.point:
            return kind  # pyright: ignore[reportReturnType]  (the three literals)
    return None


def _model_fits(named: str | None, model_id: str | None) -> bool:
    """Whether two names can mean one model: last parts, letters and digits only, chat variants "
    "equal to their base."""
    if named is None or model_id is None:
        return True
    return _model_key(named) == _model_key(model_id)


def _model_key(name: str) -> str:
    key = re.sub(r"[^a-z0-9.]", "-", name.lower().rsplit("/", 1)[-1].rsplit(":", 1)[-1])
    key = re.sub(r"-(it|instruct|chat|pt|base|hf)$", "", key)
    key = re.sub(r"[^a-z0-9]", "", key).removeprefix("meta")
    return _SAME_MODEL.get(key, key)
