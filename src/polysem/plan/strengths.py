"""How the rows of a plan that steer by the strengths of a preset are told from the study's own: by their dose unit.

Apart from `blocks.py`, so that who only reads tables needs no torch.
"""

import pyarrow as pa
import pyarrow.compute as pc

from polysem.vocabulary import DOSE_UNITS


def own_strengths(table: pa.Table) -> pa.Table:
    """The rows of a plan, or of a plan joined with its trials, that are steered by the study's own strengths, pair by
    pair."""
    units = [name for name, unit in DOSE_UNITS.items() if not (unit.paper or unit.single)]
    return _of(table, units)


def paper_strengths(table: pa.Table) -> pa.Table:
    """The rows that are steered by the paper's strengths, on the study's own arms."""
    return _of(table, [name for name, unit in DOSE_UNITS.items() if unit.paper and not unit.single])


def single_neurons(table: pa.Table) -> pa.Table:
    """The rows of neurons that are taken one by one."""
    return _of(table, [name for name, unit in DOSE_UNITS.items() if unit.single and not unit.paper])


def other_strengths(table: pa.Table) -> pa.Table:
    """All rows but the study's own."""
    return _of(table, [name for name, unit in DOSE_UNITS.items() if unit.paper or unit.single])


def paper_neurons(table: pa.Table) -> pa.Table:
    """The rows of the neurons that the paper takes, one of every bin of degree."""
    return _of(table, [name for name, unit in DOSE_UNITS.items() if unit.single and unit.paper])


def _of(table: pa.Table, units: list[str]) -> pa.Table:
    return table.filter(pc.is_in(table["dose_unit"], pa.array(units, pa.string())))
