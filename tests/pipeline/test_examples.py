"""Every example of the repository runs in its quick form and says something."""

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
WITH_FOLDER = {"toy_models"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--quick", *(["--out", str(tmp_path)] if path.stem in WITH_FOLDER else [])])
    for picture in tmp_path.glob("*.svg"):
        root = ET.fromstring(picture.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root)) > 3
    said = capsys.readouterr().out
    assert said.strip()
    assert "BROKEN" not in said
    assert "nan" not in said
    assert len(list(tmp_path.glob("*.svg"))) == (3 if path.stem in WITH_FOLDER else 0)
