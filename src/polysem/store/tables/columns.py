"""Columns and types that tables share."""

import pyarrow as pa

from polysem.store.schema import Column

INTS = pa.list_(pa.int32())
FLOATS = pa.list_(pa.float32())
STRINGS = pa.list_(pa.string())

SAE = Column("sae", pa.string(), "", "label of the SAE in the study")
FEATURE = Column("feature", pa.int32(), "", "row of W_dec")
TRIAL = Column("trial_id", pa.string(), "", "hash of the trial's own specification, 16 hex digits")
