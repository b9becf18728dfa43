"""Relations as others look them up: by pair. Imports no torch."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

BINS = (0.0, 0.2, 0.3, 0.4, 0.7, 1.01)
"""of |interference|, by which relations are counted"""
Kinds = Mapping[tuple[int, int], str]
"""(i, j), i < j -> relation; pairs that are nothing to each other are not in it"""


def mean_code(meta: pa.Table) -> dict[str, float]:
    """Share of a decoder row that a few others explain, and by chance: means over META_CODE; nothing of an empty one."""
    names = ("explained", "turned", "drawn") if meta.num_rows else ()
    return {name: pc.mean(meta[name]).as_py() for name in names}


def kinds_of(relations: pa.Table) -> dict[tuple[int, int], str]:
    """The pairs of one dictionary that have a relation.

    Args:
        relations: RELATIONS of one dictionary.
    """
    known = relations.filter(pc.not_equal(relations["relation"], "unrelated"))
    i, j, kind = (known[name].to_pylist() for name in ("i", "j", "relation"))
    return dict(zip(zip(i, j, strict=True), kind, strict=True))
