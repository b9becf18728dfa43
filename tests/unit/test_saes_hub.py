"""References to the Hub, with a local folder in place of a repository: which files are asked for, what is
recorded, which errors come."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from polysem.errors import FormatError, UnknownReferenceError
from polysem.saes import load_sae
from support import sae_fixtures as fx

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A Hub with one repository, served from a folder; snapshots are laid out as huggingface_hub does."""

    def __init__(self, repo: str, root: Path, cache: Path):
        self.repo, self.root, self.cache = repo, root, cache
        self.asked: list[str] = []
        self.revisions: list[str | None] = []

    def model_info(self, repo: str, *, revision: str | None = None):
        self.revisions.append(revision)
        if repo != self.repo:
            raise _http(RepositoryNotFoundError, "404", 404)
        names = [str(p.relative_to(self.root)) for p in sorted(self.root.rglob("*")) if p.is_file()]
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(self, repo: str, name: str, *, revision: str) -> str:
        assert revision == COMMIT, "files must be taken at the commit that was resolved"
        self.asked.append(name)
        target = self.cache / COMMIT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.root / name).read_bytes())
        return str(target)


def _http(kind: type[HfHubHTTPError], message: str, status: int) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/api"))
    return kind(message, response=response)


@pytest.fixture
def serve(monkeypatch, tmp_path: Path):
    """serve(repo, root) -> Hub: makes huggingface_hub answer from `root`."""

    def start(repo: str, root: Path) -> Hub:
        hub = Hub(repo, root, tmp_path / "cache")
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=hub.model_info))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
        return hub

    return start


def test_saelens_reference_downloads_what_is_needed_and_records_the_commit(serve, tmp_path: Path):
    weights = fx.planted(model="gpt2-small", layer=8, hook="hook_resid_pre")
    root = tmp_path / "repo"
    fx.write_saelens_oldest(root / "blocks.8.hook_resid_pre", weights)
    fx.write_saelens_oldest(root / "blocks.9.hook_resid_pre", weights)
    hub = serve("jbloom/GPT2-Small-SAEs-Reformatted", root)
    ref = "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre"
    with pytest.raises(FormatError, match="d_sae is 64 by W_dec, but the registry of releases says 24576"):
        load_sae(ref)
    assert sorted(hub.asked) == [
        "blocks.8.hook_resid_pre/cfg.json",
        "blocks.8.hook_resid_pre/sae_weights.safetensors",
    ]


def test_registry_corrections_reach_hub_references(serve, tmp_path: Path, monkeypatch):
    from polysem.saes import releases

    known = releases.releases()
    spec = {**known["gpt2-small-res-jb"], "d_in": fx.D_IN, "d_sae": fx.D_SAE}
    monkeypatch.setattr(releases, "releases", lambda: {"gpt2-small-res-jb": spec})
    root = tmp_path / "repo"
    weights = fx.planted(model="gpt2-small", layer=8, hook="hook_resid_pre")
    fx.write_saelens_oldest(root / "blocks.8.hook_resid_pre", weights)
    serve("jbloom/GPT2-Small-SAEs-Reformatted", root)
    sae = load_sae("hub:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert sae.centre_input
    assert sae.model_id == "openai-community/gpt2"
    assert sae.provenance.declared["neuronpedia"] == "gpt2-small/8-res-jb"
    assert sae.provenance.revision == COMMIT
    again = load_sae("saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre")
    torch.testing.assert_close(again.W_dec, weights.W_dec)


def test_norm_factor_of_the_registry_is_folded(serve, tmp_path: Path, monkeypatch):
    from polysem.saes import releases

    spec = {**releases.releases()["gpt2-small-mlp-tm"], "d_in": fx.D_IN, "d_sae": fx.D_SAE}
    monkeypatch.setattr(releases, "releases", lambda: {"gpt2-small-mlp-tm": spec})
    row = spec["saes"][3]
    weights = fx.planted(hook="hook_mlp_out", layer=3)
    fx.write_saelens_oldest(tmp_path / "repo" / row["path"], weights, normalize_activations=True)
    serve(spec["repo"], tmp_path / "repo")
    sae = load_sae(f"saelens:gpt2-small-mlp-tm/{row['id']}")
    torch.testing.assert_close(sae.W_dec, weights.W_dec / row["norm_scaling_factor"])


@pytest.mark.parametrize("revision", [COMMIT, "main", None])
def test_any_revision_becomes_a_commit(revision: str | None, serve, tmp_path: Path):
    fx.write_saelens_v6(tmp_path / "repo" / "sae", fx.planted())
    hub = serve("me/saes", tmp_path / "repo")
    sae = load_sae("hub:me/saes/sae" + (f"@{revision}" if revision else ""))
    assert hub.revisions == [revision]
    assert sae.provenance.revision == COMMIT
    assert sae.provenance.ref.startswith("hub:me/saes/sae")


def test_sparsify_takes_the_run_configuration_from_the_root(serve, tmp_path: Path):
    fx.write_sparsify(tmp_path / "x", fx.planted())
    hub = serve("EleutherAI/sae-pythia-70m-32k", tmp_path / "x" / "sae-run")
    sae = load_sae("hub:EleutherAI/sae-pythia-70m-32k/layers.1")
    assert sorted(hub.asked) == ["config.json", "layers.1/cfg.json", "layers.1/sae.safetensors"]
    assert sae.model_id == "EleutherAI/pythia-70m-deduped"


def test_names_in_the_repository_say_what_the_file_does_not(serve, tmp_path: Path):
    path = fx.write_qwen_scope(tmp_path, fx.planted())
    serve("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_6", path.parent)
    # In the cache the folder is named after a commit: model and k must come from the reference.
    monkeyed = load_sae("hub:Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_6/layer1.sae.pt")
    assert (monkeyed.k, monkeyed.model_id) == (6, "Qwen/Qwen3-1.7B-Base")


def test_gemma_scope_folder(serve, tmp_path: Path):
    path = fx.write_gemma_scope(tmp_path, fx.planted(), part="mlp")
    root = tmp_path / "gemma-scope-2b-pt-mlp"
    serve("me/gemma-scope-2b-pt-mlp", root)
    sae = load_sae(f"hub:me/gemma-scope-2b-pt-mlp/{path.relative_to(root)}")
    assert str(sae.site) == "blocks.1.hook_mlp_out"


def test_llama_scope_folder(serve, tmp_path: Path):
    path = fx.write_llama_scope(tmp_path, fx.planted())
    hub = serve("me/llama", tmp_path)
    assert load_sae(f"hub:me/llama/{path.name}").activation == "jumprelu"
    assert sorted(hub.asked) == [
        f"{path.name}/checkpoints/final.safetensors",
        f"{path.name}/hyperparams.json",
    ]


def test_path_that_the_repository_lacks(serve, tmp_path: Path):
    fx.write_saelens_v6(tmp_path / "repo" / "sae", fx.planted())
    serve("me/saes", tmp_path / "repo")
    with pytest.raises(UnknownReferenceError, match="me/saes has no 'other'; its top level holds sae"):
        load_sae("hub:me/saes/other")


def test_path_that_is_no_sae(serve, tmp_path: Path):
    fx.write_saelens_v6(tmp_path / "repo" / "group" / "sae", fx.planted())
    serve("me/saes", tmp_path / "repo")
    with pytest.raises(FormatError, match="no SAE file of a known format; it holds sae"):
        load_sae("hub:me/saes/group")


def test_reference_without_repository():
    with pytest.raises(UnknownReferenceError, match="expected hub:OWNER/REPO/PATH"):
        load_sae("hub:gpt2")


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (_http(GatedRepoError, "403", 403), "is gated", "HF_TOKEN"),
        (_http(RepositoryNotFoundError, "404", 404), "no repository 'me/saes'", "spelling"),
        (_http(RevisionNotFoundError, "404", 404), "no revision", "commits/main"),
        (_http(HfHubHTTPError, "500", 500), "downloading from me/saes failed", "df -h"),
        (OSError(28, "No space left on device"), "No space left on device", "disk space"),
    ],
)
def test_errors_of_the_hub(error: Exception, message: str, hint: str, monkeypatch):
    def fail(*_: object, **__: object):
        raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=fail))
    with pytest.raises(UnknownReferenceError, match=message) as caught:
        load_sae("hub:me/saes/sae")
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline"),
        httpx.ConnectError("no route"),
        ConnectionError("no route"),
        TimeoutError(),
    ],
)
class TestWithoutNetwork:
    @pytest.fixture(autouse=True)
    def offline(self, error: Exception, monkeypatch):
        def fail(*_: object, **__: object):
            raise error

        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=fail))

    def test_the_cache_is_used(self, monkeypatch, tmp_path: Path):
        fx.write_saelens_v6(tmp_path / COMMIT / "sae", fx.planted())
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / COMMIT))
        assert load_sae("hub:me/saes/sae").provenance.revision == COMMIT
        with pytest.raises(UnknownReferenceError, match="the cache does not hold 'other'"):
            load_sae("hub:me/saes/other")

    def test_an_empty_cache_says_how_to_fill_it(self, monkeypatch):
        def missing(*_: object, **__: object):
            raise LocalEntryNotFoundError("nothing here")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
        with pytest.raises(UnknownReferenceError, match="hf download me/saes --include 'sae/\\*'"):
            load_sae("hub:me/saes/sae")


def test_a_real_connection_that_fails_is_an_error_of_ours(tmp_path: Path):
    """Whatever HTTP client the installed huggingface_hub uses: nothing listens at the endpoint, and nothing
    is cached."""
    code = (
        "from polysem.saes import load_sae\n"
        "from polysem.errors import UnknownReferenceError\n"
        "try:\n    load_sae('hub:me/saes/x')\n"
        "except UnknownReferenceError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no network, and me/saes@main is not in the cache" in done.stdout
