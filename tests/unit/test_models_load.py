"""References that resolve, and every way in which one does not: one error, the file, what to do."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from polysem.errors import ConfigError, FormatError, MismatchError, StoreError, UnknownReferenceError
from polysem.models import load, load_model
from polysem.types import Site
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model, tiny_tokenizer
from support.tiny import save_tiny_model

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
TOKENS = torch.tensor([[0, 5, 9, 33]])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return save_tiny_model("gpt2", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the Hub: an exception to raise, or a folder to be the snapshot."""

    def pretend(answer):
        calls = []

        def snapshot_download(repo_id, **options):
            calls.append((repo_id, options))
            if isinstance(answer, BaseException):
                raise answer
            return str(answer)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return pretend


def hub_error(kind: type[Exception], message: str = "as the Hub says") -> Exception:
    # the constructors want a response whose class depends on the version of huggingface_hub
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def test_a_saved_model_comes_back_bit_for_bit(pristine):
    loaded, original = load_model(str(pristine)), tiny_model("gpt2")
    assert torch.equal(loaded.logits(TOKENS), original.logits(TOKENS))
    assert loaded.spec.ref == str(pristine)
    assert (loaded.spec.family, loaded.spec.n_layers, loaded.spec.d_model, loaded.spec.d_vocab) == (
        "gpt2",
        2,
        16,
        64,
    )
    assert (loaded.spec.dtype, loaded.spec.n_ctx) == ("float32", 128)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_comes_back_from_its_folder(family, tmp_path):
    """Tied heads, untied ones, and GPT-NeoX's, which is `embed_out` in every file."""
    loaded, original = load_model(str(save_tiny_model(family, tmp_path))), tiny_model(family)
    assert torch.equal(loaded.logits(TOKENS), original.logits(TOKENS))
    assert torch.equal(loaded.W_U, original.W_U)
    assert loaded.tokenize("the old man", prepend_bos=True) == original.tokenize(
        "the old man", prepend_bos=True
    )


def test_dtypes(pristine):
    for dtype, given in (("float64", torch.float64), ("bfloat16", torch.float32), ("float16", torch.float32)):
        model = load_model(str(pristine), dtype=dtype, device="cpu")
        assert model.spec.dtype == dtype
        assert model.W_U.dtype == getattr(torch, dtype)
        assert model.logits(TOKENS).dtype == given
        assert model.capture(TOKENS, [Site(0, "hook_mlp_out")])[Site(0, "hook_mlp_out")].dtype == given


def test_the_revision_of_a_folder_is_its_content(folder, tmp_path):
    revision = load_model(str(folder)).spec.revision
    assert len(revision) == 64
    elsewhere = Path(shutil.copytree(folder, tmp_path / "copy"))
    (elsewhere / "README.md").write_text("a card decides no number")
    assert load_model(str(elsewhere), revision=revision).spec.revision == revision
    weights = load_file(elsewhere / "model.safetensors")
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + 1
    save_file(weights, elsewhere / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(elsewhere)).spec.revision != revision
    with pytest.raises(MismatchError, match=f"but revision {revision} was asked for"):
        load_model(str(elsewhere), revision=revision)


def test_sharded_weights_are_read_and_a_missing_shard_is_named(folder):
    tiny_model("gpt2").model.save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("gpt2").logits(TOKENS))
    shards[1].unlink()
    with pytest.raises(FormatError, match=f"first: {shards[1].name}"):
        load_model(str(folder))


def test_a_zoo_reference_is_a_folder_of_the_zoo(pristine, monkeypatch):
    monkeypatch.setattr(load, "zoo_path", lambda kind, name: {("models", "gpt2"): pristine}[kind, name])
    model = load_model("zoo:gpt2")
    assert model.spec.ref == "zoo:gpt2"
    assert model.spec.revision == load_model(str(pristine)).spec.revision


def test_a_hub_reference_is_a_snapshot_and_its_commit(pristine, tmp_path, hub):
    snapshot = Path(shutil.copytree(pristine, tmp_path / "snapshots" / COMMIT))
    calls = hub(snapshot)
    model = load_model("openai-community/gpt2", revision="main")
    assert model.spec.revision == COMMIT
    assert model.spec.ref == "openai-community/gpt2"
    [(repo, options)] = calls
    assert (repo, options["revision"]) == ("openai-community/gpt2", "main")
    assert not [
        pattern for pattern in options["allow_patterns"] if pattern.endswith((".bin", ".pt", ".py", "*"))
    ]


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (
            hub_error(hub_errors.GatedRepoError),
            UnknownReferenceError,
            ["gated", "https://huggingface.co/a/b", "HF_TOKEN"],
        ),
        (
            hub_error(hub_errors.RepositoryNotFoundError),
            UnknownReferenceError,
            ["no repository a/b", "no such folder"],
        ),
        (
            hub_error(hub_errors.RevisionNotFoundError),
            UnknownReferenceError,
            ["no revision 'v9'", "commits/main"],
        ),
        (hub_error(hub_errors.LocalEntryNotFoundError), UnknownReferenceError, ["not reached", "zoo:NAME"]),
        (
            hub_error(hub_errors.HfHubHTTPError, "429 Too Many"),
            UnknownReferenceError,
            ["429 Too Many", "try again"],
        ),
        (ConnectionError("reset by peer"), UnknownReferenceError, ["reset by peer", "a/b"]),
        (OSError(errno.ENOSPC, "No space left on device"), StoreError, ["disk is full", "HF_HOME"]),
    ],
)
def test_what_the_hub_refuses(hub, error, expected, words):
    hub(error)
    with pytest.raises(expected) as caught:
        load_model("a/b", revision="v9")
    assert type(caught.value) is expected
    for word in words:
        assert word in str(caught.value)


def test_other_errors_of_the_machine_are_named(hub):
    hub(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(UnknownReferenceError, match=r"a/b cannot be fetched: .*Permission denied"):
        load_model("a/b")


def test_offline_without_a_cache_says_so(monkeypatch):
    """The real client, told that it is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnknownReferenceError, match=r"a/never-fetched is not .*HF_HUB_OFFLINE is set"):
        load_model("a/never-fetched")


def test_a_snapshot_without_safetensors_is_refused(pristine, tmp_path, hub):
    snapshot = Path(shutil.copytree(pristine, tmp_path / COMMIT))
    (snapshot / "model.safetensors").unlink()
    hub(snapshot)
    with pytest.raises(FormatError, match=r"a/b: .* holds no weights; expected model\.safetensors"):
        load_model("a/b")


@pytest.mark.parametrize("ref", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "runs/models/x"])
def test_a_path_that_is_not_there(ref):
    with pytest.raises(FormatError, match=f"there is no folder {ref}"):
        load_model(ref)


def test_a_file_is_not_a_model_folder(folder):
    with pytest.raises(FormatError, match="is a file; expected a folder") as caught:
        load_model(str(folder / "model.safetensors"))
    assert str(folder) in str(caught.value.hint)


def test_a_folder_without_a_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json is missing"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "is not JSON"), ("[]", "expected a JSON object, got list"), ('{"d_in": 3}', "no model_type")],
)
def test_a_configuration_that_is_none(folder, text, match):
    (folder / "config.json").write_text(text)
    with pytest.raises(FormatError, match=match) as caught:
        load_model(str(folder))
    assert "config.json" in str(caught.value)


def test_an_unknown_family_is_refused_and_its_code_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "gpt3", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(
        UnknownReferenceError, match=r"'gpt3' model.*gpt2, gpt_neox, llama.*did you mean 'gpt2'"
    ):
        load_model(str(folder))


def test_code_beside_a_known_family_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("gpt2").logits(TOKENS))


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        FormatError, match=r"model\.safetensors.* (is truncated or no safetensors file|is empty)"
    ):
        load_model(str(folder))


def test_pickled_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"only pickled weights \(pytorch_model\.bin\), which are refused"):
        load_model(str(folder))


def test_absent_tensors_are_not_made_up(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"lack 1 tensors .*transformer\.h\.1\.mlp\.c_fc\.weight"):
        load_model(str(folder))


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 40}))
    with pytest.raises(FormatError, match=r"do not fit the configuration|tensors of another shape"):
        load_model(str(folder))


def test_weights_that_are_not_numbers(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["transformer.wpe.weight"][3, 2] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"weight transformer\.wpe\.weight is not finite in float32"):
        load_model(str(folder))


def test_a_tokenizer_with_too_many_tokens_does_not_match(folder):
    tiny_tokenizer(90).save_pretrained(folder)
    with pytest.raises(MismatchError, match="token ids up to 89, the model has embeddings for 0 to 63"):
        load_model(str(folder))


def test_a_folder_without_a_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="holds no tokenizer"):
        load_model(str(folder))


def test_a_tokenizer_that_is_damaged(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(FormatError, match=r"tokenizer.* cannot be read|is not JSON"):
        load_model(str(folder))


def test_devices_and_dtypes_that_do_not_exist(pristine):
    with pytest.raises(ConfigError, match="unknown dtype 'int8'; expected one of float32"):
        load_model(str(pristine), dtype="int8")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        load_model(str(pristine), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda' is not available"):
            load_model(str(pristine), device="cuda")


def test_importing_the_package_of_models_is_cheap():
    code = "import sys, polysem.models as m; assert 'load_model' in dir(m); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_leaves_the_voice_of_transformers_as_it_was(pristine, capfd):
    from transformers.utils import logging as talk

    before = talk.get_verbosity(), talk.is_progress_bar_enabled()
    load_model(str(pristine))
    assert (talk.get_verbosity(), talk.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_real_model_that_nobody_here_trained(shared):
    folder = shared / "data" / "stories260k" / "hf"
    model = load_model(str(folder))
    ids = model.tokenize("Once upon a time", prepend_bos=True)
    assert ids[0] == model.bos_id == 1
    for _ in range(24):
        ids.append(int(model.logits(torch.tensor([ids]), last_only=True)[0, -1].argmax()))
    expected = "Once upon a time, there was a little girl named Lily. She loved to"
    assert model.detokenize(ids[1:]).strip().startswith(expected)
    assert "".join(model.token_strings(ids[1:])).strip().startswith(expected)
