"""The paper's strengths, and how the rows of a plan that push by them are told from the study's own.

Apart from `blocks.py`, so that who only reads tables needs no torch.
"""

import pyarrow as pa
import pyarrow.compute as pc

from polysem.types import PAPER_UNITS

_SIZES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 17.0, 20.0)
PAPER_SCALES = tuple(sorted(sign * size for size in _SIZES for sign in (-1.0, 1.0)))
"""strengths of unit directions, in the activation's own units (protocol 2.6)"""
_FACTORS = (0, 0.1, 0.2, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 18, 20)
PAPER_CHANGES = tuple(round(factor - 1, 10) for factor in _FACTORS if factor != 1)
"""relative changes of a coordinate (protocol 2.9); times 1 changes nothing and is left out"""


def own_strengths(table: pa.Table) -> pa.Table:
    """The rows of a plan, or of a plan joined with its trials, that push by the study's own strengths."""
    return table.filter(pc.invert(_by_paper(table)))


def paper_strengths(table: pa.Table) -> pa.Table:
    """The rows that push by the paper's strengths."""
    return table.filter(_by_paper(table))


def _by_paper(table: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table["dose_unit"], pa.array(PAPER_UNITS, pa.string()))
