"""Every hint that names a setting or a command is followed, in the case that raised it, and what was refused then succeeds.

`support.following`, `following_files` and `following_runs` raise and follow them; `ELSEWHERE` names the test that does; `NOT_HERE` says in
words why none can. A new hint of the kind is in one of them, or this file fails.
"""

import re

import pytest

from house.test_hints import HINTS, SOURCES
from support import following_files, following_runs
from support.following import CASES, COMMAND, SETTING, Following

assert following_files  # their cases join those of `following`
assert following_runs

ELSEWHERE = {
    "engine/check.py: set corpus.context": "pipeline/test_check.py::test_hints_that_name_a_setting_lead_to_a_study_that_passes",
    "engine/check.py: set plan.n_targets": "pipeline/test_check.py::test_hints_that_name_a_setting_lead_to_a_study_that_passes",
    "engine/run.py: add a line": "pipeline/test_kinship.py::test_what_cannot_be_asked_is_an_error",
    "saes/load.py: set prepend_bos = false": "unit/test_positions.py::test_a_bos_that_there_is_not_is_an_error",
    "glosses/origin.py: name the SAE": "unit/test_glosses_as_people_have_them.py::test_hints_of_gloss_files_work",
    "boundary/text.py: iconv": "unit/test_models_checkpoint.py::test_text_of_another_kind_is_named_and_the_command_mends_it",
    "models/load.py: rename that file": "unit/test_models_checkpoint.py::test_weights_of_another_name_are_not_read_in_place_of_the_models",
    "glosses/cache.py: rm X": "unit/test_glosses_embed.py::test_damaged_cache_is_named",
}
"""`file: beginning of the hint` -> the test that raises and follows it"""
_INSTALLS = "an installation: a registry would be asked"
_HUB = "the Hub would be asked, or an account there"
_SERVER = "what is named is set at a server, and a real one is asked; those of the tests are made to fit"
_MANY = "several machines, or memory that runs out"
_TOOL = "a tool or an object of another package, which is not installed"
NOT_HERE = {
    **dict.fromkeys(
        (
            "boundary/tensors.py: pip install", "boundary/records.py: pip install", "features/table.py: pip install", "glosses/embedders.py: pip install", "glosses/embedders.py: check the name",
            "glosses/lexical.py: pip install", "glosses/shipped.py: pip install", "models/gguf.py: pip install",
            "registry.py: pip install", "report/publish.py: pip install", "selftest/record.py: pip install",
            "store/result.py: pip install",
            "vocabulary/words.py: pip uninstall", "worlds/training.py: pip install", "engine/ray.py: pip install",
        ),
        _INSTALLS,
    ),
    **dict.fromkeys(
        (
            "engine/context.py: choose a new --out, or pin", "report/publish.py: hf auth", "saes/hub.py: accept it",
            "saes/hub.py: check the spelling", "saes/hub.py: with a network", "saes/transcoders/load.py: hf download", "boundary/records.py: set corpus.ref",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "http.py: serve that model", "targets/probe.py: ", "targets/samples.py: ",
            "targets/served.py: ", "transfer/interpret.py: ",
        ),
        _SERVER,
    ),
    **dict.fromkeys(("engine/ray.py: ", "engine/workers.py: ", "store/lock.py: free", "store/io.py: ", "targets/cache.py: "), _MANY),
    **dict.fromkeys(
        ("models/gguf.py: llama-gguf-split", "models/objects.py: load them: in nnsight", "models/text.py: use a model"), _TOOL
    ),
}  # fmt: skip
"""`file: beginning of the hint` -> why it cannot be followed in a test of seconds"""


def sites() -> set[str]:
    """`file: text` of every hint that names a setting or a command."""
    return {
        f"{place.partition(':')[0]}: {text}"
        for place, text in HINTS
        if COMMAND.search(text) or SETTING.search(text)
    }


def _of(site: str, beginning: str) -> bool:
    return site.startswith(beginning)


@pytest.mark.parametrize("name", CASES)
def test_hints_are_followed(name, tmp_path, monkeypatch):
    its, case = CASES[name]
    if name in ("prompts", "commands", "others"):
        pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    if name == "numbers_of_models":
        pytest.importorskip("gguf", reason="the package gguf is not installed")
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    do = Following(folder)
    case(do)
    for beginning in its:
        file, _, text = beginning.partition(": ")
        pattern = re.compile(re.escape(text).replace("X", ".*"), re.DOTALL)
        assert any(file in files and pattern.match(hint) for files, hint in do.seen), (
            f"never raised: {beginning}"
        )


def test_every_hint_that_names_a_setting_or_a_command_is_followed():
    told = [*(b for its, _ in CASES.values() for b in its), *ELSEWHERE, *NOT_HERE]
    assert {site for site in sites() if not any(_of(site, b) for b in told)} == set()
    assert [b for b in told if not any(_of(site, b) for site in sites())] == [], "no such hint any more"


def test_tests_elsewhere_are_there():
    tests = SOURCES.parents[1] / "tests"
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert re.search(rf"^def {name}\b", (tests / file).read_text(encoding="utf-8"), re.MULTILINE), place
