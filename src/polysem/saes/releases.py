"""The registry of published releases: `saelens:RELEASE/ID` to repository, path and known corrections.

The data is `releases.json`, compact: patterns in `{layer}` instead of one line per SAE. `revision` is null
where no commit has been
verified; the commit is then resolved at load and recorded. A commit written there pins the release.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from polysem.errors import UnknownReferenceError
from polysem.registry import did_you_mean


@dataclass(frozen=True)
class ReleaseEntry:
    """One SAE of a release."""

    release: str
    sae_id: str
    repo: str
    path: str
    """folder or file in the repository"""
    revision: str | None
    model: str
    """Hub id; overrides what the files say"""
    d_in: int
    d_sae: int | None
    neuronpedia: str | None = None
    """modelId/sourceId"""
    centre_input: bool = False
    norm_scaling_factor: float | None = None


@cache
def releases() -> dict[str, dict[str, Any]]:
    """The registry as it is written, by release name."""
    return json.loads(files("polysem.saes").joinpath("releases.json").read_text(encoding="utf-8"))


def find(release: str, sae_id: str) -> ReleaseEntry:
    """The entry of a release and an id.

    Raises:
        UnknownReferenceError: naming the closest release, or the ids that the release has.
    """
    known = releases()
    if release not in known:
        raise UnknownReferenceError(
            f"unknown SAE release {release!r}{did_you_mean(release, known)}; known: {', '.join(known)}",
            hint="a release that is not listed can be named by its repository: hub:OWNER/REPO/PATH",
        )
    spec = known[release]
    for row in spec["saes"]:
        if (layer := _layer_of(row["id"], sae_id, row.get("layers"))) is not None:
            return _entry(
                release, sae_id, row["path"].format(layer=layer), row.get("neuronpedia"), layer, row
            )
    if (match := re.fullmatch(r"layer_(\d+)/width_(\w+)/canonical", sae_id)) and "canonical_l0" in spec:
        layer, width = match.groups()
        if (l0 := spec["canonical_l0"].get(width, {}).get(layer)) is not None:
            dashboard = spec["neuronpedia"].replace("{width}", width)
            return _entry(
                release, sae_id, f"layer_{layer}/width_{width}/average_l0_{l0}", dashboard, layer, {}
            )
    if re.fullmatch(spec.get("path_is_id", r"(?!)"), sae_id):
        return _entry(release, sae_id, sae_id, None, "", {})
    raise UnknownReferenceError(
        f"release {release} has no SAE {sae_id!r}; its ids are {describe_ids(release)}"
    )


def find_by_path(repo: str, path: str) -> ReleaseEntry | None:
    """The entry whose files lie at `path` of `repo`, so that `hub:` references get the same corrections as
    `saelens:` ones."""
    for release, spec in releases().items():
        if spec["repo"] != repo:
            continue
        for row in spec["saes"]:
            if (layer := _layer_of(row["path"], path, row.get("layers"))) is not None:
                return _entry(
                    release, row["id"].format(layer=layer), path, row.get("neuronpedia"), layer, row
                )
        if re.fullmatch(spec.get("path_is_id", r"(?!)"), path):
            return _entry(release, path, path, None, "", {})
    return None


def describe_ids(release: str) -> str:
    """The ids of a release in a few words, for messages and documentation."""
    spec = releases()[release]
    ids = [_ids_of_row(row) for row in spec["saes"]]
    for width, layers in spec.get("canonical_l0", {}).items():
        numbers = sorted(map(int, layers))
        span = f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 3 else ",".join(map(str, numbers))
        ids.append(f"layer_{{{span}}}/width_{width}/canonical")
    if "path_is_id" in spec:
        ids.append("layer_N/width_Wk/average_l0_L (as in the repository)")
    return ", ".join(ids)


def _ids_of_row(row: dict[str, Any]) -> str:
    if "layers" not in row:
        return row["id"]
    first, last = row["layers"]
    return row["id"].replace("{layer}", f"{{{first}..{last}}}")


def _layer_of(pattern: str, text: str, layers: list[int] | None) -> str | None:
    """What `{layer}` stands for in `text`; "" if the pattern has none and equals the text; None if it does
    not match."""
    if layers is None:
        return "" if pattern == text else None
    match = re.fullmatch(
        re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)", 1).replace(r"\{layer\}", "(?P=layer)"),
        text,
    )
    return match["layer"] if match and layers[0] <= int(match["layer"]) <= layers[1] else None


def _entry(
    release: str, sae_id: str, path: str, neuronpedia: str | None, layer: str, row: dict[str, Any]
) -> ReleaseEntry:
    spec = releases()[release]
    return ReleaseEntry(
        release=release,
        sae_id=sae_id,
        repo=spec["repo"],
        path=path,
        revision=spec["revision"],
        model=spec["model"],
        d_in=spec["d_in"],
        d_sae=spec["d_sae"],
        neuronpedia=neuronpedia.replace("{layer}", layer) if neuronpedia else None,
        centre_input=spec.get("centre_input", False),
        norm_scaling_factor=row.get("norm_scaling_factor"),
    )
