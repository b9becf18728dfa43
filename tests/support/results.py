"""What is demanded of every result of a session."""

import base64
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow.parquet as pq

from polysem.store.result import Result


def check_result(result: Result, folder: Path, *, drawn: bool = True) -> None:
    """A short repr; HTML with its numbers, first columns and figure; every table as a data frame and as a file.

    Args:
        result: of any kind.
        folder: an empty one.
        drawn: whether it has enough to draw.
    """
    said = repr(result)
    assert said.startswith(f"{type(result).__name__}(")
    assert len(said) < 600
    assert "\n" not in said
    page = result._repr_html_()
    ET.fromstring(f"<div>{page}</div>")  # well formed
    tables = result.tables()
    main = next(iter(tables))
    assert all(name in page for name in tables[main].column_names[:2])
    found = re.search(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert bool(found) == drawn, type(result)
    if found:
        picture = ET.fromstring(base64.b64decode(found[1]))
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme:dark" in "".join(picture.itertext())
        assert result.plot().save(folder / "figure.svg").read_text(encoding="utf-8").startswith("<svg")
    for name, table in tables.items():
        frame = result.to_pandas(name)
        assert list(frame.columns) == table.column_names
        assert len(frame) == table.num_rows
    saved = result.save(folder / "tables")
    assert {path.stem for path in saved.iterdir()} == set(tables)
    assert pq.read_table(saved / f"{main}.parquet").num_rows == tables[main].num_rows
