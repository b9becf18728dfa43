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


@pytest.mark.parametrize(
    "line",
    [
        'plan.doses = ["0.1"]', "plan.doses = [true]", "plan.doses = [nan]", "pairs.bins = [0.0, nan, 1.0]",
        "pairs.bins = [0.0, inf]", 'pairs.min_interference = "0.5"', "pairs.min_interference = true", "effects.max_kl = inf",
        'corpus.n_tokens = "200"', "corpus.n_tokens = true", "corpus.n_tokens = 1.5", "seed = 1979-05-27", "name = 3",
        "glosses.cluster_cuts = [nan]", 'prompts.chat_template = "yes"', "prompts.chat_template = 1", "model.ref = 1979-05-27",
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_where_it_is_read(line):
    """Not turned into a number, and not found out when the features are made already."""
    key = line.split(" = ")[0]
    other = "" if key == "model.ref" else 'model.ref = "m"\n'
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        parse_study(f'{line}\n{other}[[saes]]\nref = "s"\n')


def test_a_whole_number_is_a_number():
    study = parse_study('plan.doses = [1]\nmodel.ref = "m"\n[[saes]]\nref = "s"\nmax_fvu = 1\n')
    assert study.plan.doses == (1.0,)
