"""Glosses that come with a zoo's dictionary: a line each, written from contexts of even rank and scored on those of odd rank.

One JSON object a line: feature, gloss, explainer, and what is known of it (docs/glosses.md). A gloss "unclear" is none: the
feature keeps its token gloss.
"""

import logging
from pathlib import Path

from polysem.errors import ConfigError, MismatchError, UnknownReferenceError
from polysem.glosses.base import Gloss, ordered
from polysem.glosses.failures import is_failure
from polysem.glosses.raw import read_rows
from polysem.glosses.rows import parse_glosses
from polysem.registry import zoo_path

log = logging.getLogger(__name__)

SOURCE = "zoo"
_ZOOS = ("zoo", "zoo-real")


def shipped_file(ref: str) -> Path | None:
    """The file of the lines that were written for an SAE; None where there are none.

    Args:
        ref: of the SAE, of whatever kind.
    """
    try:
        return zoo_path("glosses", ref) if ref.partition(":")[0] in _ZOOS else None
    except UnknownReferenceError:
        return None


def shipped_glosses(ref: str, *, d_sae: int) -> list[Gloss]:
    """The written glosses of an SAE of the zoos, by feature; none, with a WARNING, where nothing was written.

    Args:
        ref: `zoo:NAME` or `zoo-real:NAME` of the SAE.
        d_sae: number of its features.

    Raises:
        ConfigError: the SAE is of neither zoo.
        FormatError: the file is damaged.
        MismatchError: a feature number is not below d_sae.
    """
    kind = ref.partition(":")[0]
    if kind not in _ZOOS:
        raise ConfigError(
            f"glosses.source is 'zoo', but the SAE is {ref}, which is of no zoo; expected zoo:NAME or zoo-real:NAME",
            hint='set glosses.source = "tokens", or a file of glosses',
        )
    path = shipped_file(ref)
    if path is None:
        log.warning("%s: no glosses were written for it; token glosses are taken", ref)
        return []
    lines = [line for row in read_rows(path) for line in parse_glosses(row)]
    wrong = next((line for line in lines if line.feature >= d_sae), None)
    if wrong is not None:
        raise MismatchError(
            f"{wrong.where}: feature {wrong.feature} does not exist in an SAE of {d_sae} features",
            hint=f"pip install --force-reinstall polysem-{kind}",
        )
    return ordered(
        Gloss(line.feature, line.text, SOURCE, line.explainer) for line in lines if not is_failure(line.text)
    )
