"""A study of a model whose tokenizer begins no text."""

import json
from pathlib import Path

import pytest

from polysem.cli.app import app
from polysem.models import load_model
from polysem.store.io import read_table
from polysem.store.tables import FEATURES, PROMPTS
from support.sae_fixtures import planted, write_saelens_v6
from support.tiny import save_tiny_model

WORDS = "the old man looked at the sea for a long time, and the children of the king had gone to the forest. "
STUDY = """
[model]
ref = "{model}"
device = "cpu"
{model_keys}
[[saes]]
ref = "{sae}"
max_fvu = 100
allow_other_model = true
{keys}
[corpus]
ref = "{corpus}"
n_tokens = 1500
context = 32
[features]
n_contexts = 3
[pairs]
max_similarity = 0.99
[prompts]
source = "templates"
n = 4
[plan]
n_targets = 2
doses = [0.01]
sources_per_bin = 1
n_random = 1
"""


def without_bos(folder: Path) -> Path:
    """A tiny Qwen whose tokenizer has EOS and pad, and no BOS."""
    save_tiny_model("qwen2", folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            fields = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in fields.items() if k != "bos_token"}))
    return folder


@pytest.mark.parametrize(
    ("keys", "model_keys", "front"),
    [
        ("", "", [0]),
        ("prepend_bos = false", "", []),
        ("", "prepend_bos = false", []),
        ("prepend_bos = true", "prepend_bos = false", []),
    ],
)
def test_a_study_of_a_model_without_bos_runs_and_says_what_stands_in_front(
    tmp_path, capsys, keys, model_keys, front
):
    model = without_bos(tmp_path / "qwen")
    assert load_model(str(model), device="cpu").bos_id is None
    sae = planted(d_in=16, layer=0, hook="hook_resid_pre", k=4)
    write_saelens_v6(tmp_path / "sae", sae, architecture="topk", metadata={"prepend_bos": None})
    (tmp_path / "corpus.txt").write_text("\n\n".join(WORDS * 2 for _ in range(60)))
    study = tmp_path / "study.toml"
    study.write_text(
        STUDY.format(
            model=model,
            sae=tmp_path / "sae",
            corpus=tmp_path / "corpus.txt",
            keys=keys,
            model_keys=model_keys,
        )
    )
    said = ""
    for verb in ("features", "pairs", "plan"):
        with pytest.raises(SystemExit) as ended:
            app([verb, str(study), "--out", str(tmp_path / "out")])
        talk = capsys.readouterr().err
        assert not ended.value.code, talk
        said += talk
    # The SAE's own key is the last word on its rows; prompts begin as its rows do.
    expected = [0] if keys == "prepend_bos = true" else front
    prompts = read_table(tmp_path / "out" / "plan" / "prompts.parquet", PROMPTS, rebuild="").to_pylist()
    assert all(row["token_ids"][:1] == expected or not expected for row in prompts)
    bare = load_model(str(model), device="cpu")
    for row in prompts:
        assert row["token_ids"] == [*expected, *bare.tokenize(row["text"], prepend_bos=False)]
    assert ("EOS (token 0) in front of every row" in said) == bool(expected)
    features = read_table(tmp_path / "out" / "features" / "features.parquet", FEATURES, rebuild="")
    assert features["max_act"].to_numpy().max() > 0
