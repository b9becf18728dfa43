"""What the printed study file says of the closed choices is what there are."""

import re
from importlib.resources import files

import pytest

from polysem.categories import DEFAULT
from polysem.config import parse_study
from polysem.errors import ConfigError
from polysem.vocabulary import CONTROLS, DOSE_UNITS, LOCI, TOKEN_SETS

TEXT = (files("polysem.cli") / "study.toml").read_text(encoding="utf-8")


def said_of(key: str) -> str:
    """The key's line and the comments that go on with it."""
    found = re.search(rf"^# {key} = .*(?:\n {{10,}}# .*)*", TEXT, re.MULTILINE)
    assert found, key
    return found.group(0)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("loci", list(LOCI)),
        ("controls", list(CONTROLS)),
        ("token_sets", list(TOKEN_SETS)),
        ("dose_unit", [name for name, unit in DOSE_UNITS.items() if unit.asked]),
        ("about", list(DEFAULT)),
    ],
)
def test_the_study_file_names_every_choice(key, names):
    words = set(re.findall(r"\w+", said_of(key)))
    assert set(names) <= words


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ('loci = ["featrue"]', "unknown locus 'featrue'.*did you mean 'feature'"),
        ('controls = ["isotropc"]', "unknown control 'isotropc'.*did you mean 'isotropic'"),
        ('token_sets = ["outt"]', "unknown token set 'outt'.*did you mean 'out'"),
        ('dose_unit = "resid_nrom"', "did you mean 'resid_norm'"),
        ('dose_unit = "factor"', "unknown unit of doses 'factor'; expected one of kl, resid_norm, absolute"),
    ],
)
def test_an_unknown_choice_says_what_was_meant(line, meant):
    with pytest.raises(ConfigError, match=meant):
        parse_study(f'[model]\nref = "m"\n[[saes]]\nref = "s"\n[plan]\n{line}\n')
