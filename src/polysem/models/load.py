"""References to models: a Hub id, a local folder or `zoo:NAME` becomes an `HFModel`, or one clear error.

Whatever the reference, what is loaded is a folder: it is checked first (configuration, family, weight files
whole and not pickled), hashed or tied to its commit, and only then given to `transformers`. Code from a
repository is never run.
"""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polysem.errors import ConfigError, FormatError, MismatchError, StoreError, UnknownReferenceError
from polysem.models.anatomy import FAMILIES, check_family
from polysem.models.hf import HFModel
from polysem.registry import zoo_path

log = logging.getLogger(__name__)

DTYPES = ("float32", "float64", "bfloat16", "float16")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w.-]+)?$")


def load_model(
    ref: str, *, revision: str | None = None, dtype: str = "float32", device: str = "auto"
) -> HFModel:
    """A causal language model with its tokenizer, frozen and ready.

    Args:
        ref: Hub id (`openai-community/gpt2`), local folder, or `zoo:NAME`.
        revision: commit, tag or branch on the Hub; for a folder, the sha256 that it is expected to have.
        dtype: of weights and activations; results of calls are float32 in any case (float64 for float64).
        device: `auto` (cuda, then mps, then cpu) or a torch device.

    Raises:
        UnknownReferenceError: if the reference cannot be resolved: no such repository, gated, no network,
            unknown family.
        FormatError: if a file is missing, truncated, pickled, or does not hold what the configuration says.
        MismatchError: if the tokenizer does not fit the model, or the folder is not of the revision asked
            for.
        ConfigError: if dtype or device is not one that exists here.
    """
    place = _device(device)
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    folder, commit = _locate(ref, revision=revision)
    config = _read_config(folder, ref=ref)
    check_family(config["model_type"], ref=ref)
    weights = weight_files(folder, ref=ref)
    for file in weights:
        _check_whole(file)
    _check_tokenizer_files(folder, ref=ref)
    found = commit or _folder_sha256(folder, weights)
    if commit is None and revision not in (None, found):
        raise MismatchError(
            f"{folder} has sha256 {found}, but revision {revision} was asked for",
            hint="leave the revision out, or put back the files it was computed from",
        )
    with quiet_transformers():
        model = _read_weights(folder, dtype=dtype, eager=FAMILIES[config["model_type"]].eager_attention)
        tokenizer = _read_tokenizer(folder)
    loaded = HFModel.from_parts(model.to(place), tokenizer, ref=ref, revision=found)
    log.info("model %s revision %s: %s, %s on %s", ref, found[:12], loaded.spec.family, dtype, place)
    return loaded


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ConfigError(
            f"device {name!r} is not available on this machine", hint="use device = 'auto' or 'cpu'"
        )
    return name


def _locate(ref: str, *, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a reference, and its commit if it is the Hub's."""
    if ref.startswith("zoo:"):
        return zoo_path("models", ref.removeprefix("zoo:")), None
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.is_file():
        raise FormatError(
            f"{ref} is a file; expected a folder with config.json and weights", hint=f"give {folder.parent}"
        )
    if not _HUB_ID.match(ref) or ref.startswith((".", "~")):
        raise FormatError(
            f"there is no folder {ref}", hint="check the path; a Hub model is written OWNER/NAME"
        )
    snapshot = _download(ref, revision=revision)
    return snapshot, snapshot.name


def _download(repo: str, *, revision: str | None) -> Path:
    """The snapshot folder of a Hub repository in the local cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    wanted = ["config.json", "generation_config.json", *TOKENIZER_FILES, *WEIGHT_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except GatedRepoError as error:  # before RepositoryNotFoundError, whose subclass it is
        raise UnknownReferenceError(
            f"{repo} is gated: its licence must be accepted by the account whose token is used",
            hint=f"accept the licence at {page}, then set HF_TOKEN to a token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownReferenceError(
            f"the Hub has no repository {repo} (or it is private and HF_TOKEN does not open it), "
            "and there is no such folder here",
            hint=f"check the spelling at {page}; a local model is given by its folder",
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownReferenceError(
            f"{repo} has no revision {revision!r}", hint=f"choose a commit or branch from {page}/commits/main"
        ) from error
    except LocalEntryNotFoundError as error:
        offline = (
            " because HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        )
        raise UnknownReferenceError(
            f"{repo} is not (or not wholly) in the local cache and the Hub was not reached{offline}",
            hint="connect once to fetch it, give a local folder, or use a model of the zoo (zoo:NAME)",
        ) from error
    except (HfHubHTTPError, ConnectionError) as error:
        raise UnknownReferenceError(
            f"the Hub did not give {repo}: {_first_line(error)}", hint=f"try again later, or see {page}"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StoreError(
            f"the disk is full: {repo} cannot be fetched",
            hint="free some space, or set HF_HOME to a larger disk",
        ) from error


def _read_config(folder: Path, *, ref: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise FormatError(
            f"{ref}: {file} is missing; expected a Hugging Face model folder",
            hint="give the folder that save_pretrained wrote (config.json, *.safetensors, tokenizer.json)",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{file} is not JSON: {error}", hint="fetch the file again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FormatError(
            f"{file} has no model_type; expected the configuration of a transformers model",
            hint="an SAE's configuration belongs to load_sae; a model's names its family in model_type",
        )
    return config


def weight_files(folder: Path, *, ref: str) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        FormatError: if there are none, only pickled ones, or a shard of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise FormatError(f"{index} has no weight_map: {error}", hint="fetch the file again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FormatError(
                f"{ref}: {len(missing)} of {len(names)} weight files named in {index} are missing "
                f"(first: {missing[0]})",
                hint="fetch the missing files",
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    seen = f"only pickled weights ({', '.join(pickles[:3])}), which are refused" if pickles else "no weights"
    raise FormatError(
        f"{ref}: {folder} holds {seen}; expected model.safetensors (a pickle can run code when it is opened)",
        hint="choose a revision with safetensors, or convert: https://huggingface.co/spaces/safetensors/convert",
    )


def _check_whole(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass  # reading the header checks that the tensors fill the file exactly
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{file} ({file.stat().st_size} bytes) is not a whole safetensors file: {_first_line(error)}",
            hint="fetch or copy the file again",
        ) from error


def _check_tokenizer_files(folder: Path, *, ref: str) -> None:
    whole = [["tokenizer.json"], ["tokenizer.model"], ["vocab.json", "merges.txt"]]
    if not any(all((folder / name).is_file() for name in names) for names in whole):
        raise FormatError(
            f"{ref}: {folder} holds no tokenizer; expected tokenizer.json, tokenizer.model, "
            "or vocab.json with merges.txt",
            hint="copy the tokenizer files of the same model into the folder",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice from transformers while it loads: what matters of it is raised here as an
    error."""
    from transformers.utils import logging as talk

    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()


def _read_weights(folder: Path, *, dtype: str, eager: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    attention = {"attn_implementation": "eager"} if eager else {}
    reader: Any = AutoModelForCausalLM  # typed without the loading report
    try:
        model, report = reader.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **attention,
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise FormatError(
            f"{folder}: the weights do not fit the configuration: {_first_line(error)}",
            hint="fetch the folder again, or put config.json and the weights of one model together",
        ) from error
    _check_complete(report, folder)
    _check_weights_finite(model, folder, dtype=dtype)
    return model


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A tokenizer.json that declares no class of its own is the whole truth. AutoTokenizer would rebuild it as
    # the class usual for the model family (transformers 5) or not know the class name of the other major
    # version (4 does not know TokenizersBackend).
    declared = folder / "tokenizer_config.json"
    try:
        name = (
            json.loads(declared.read_text(encoding="utf-8")).get("tokenizer_class")
            if declared.is_file()
            else None
        )
        plain = (
            name in ("PreTrainedTokenizerFast", "TokenizersBackend") and (folder / "tokenizer.json").is_file()
        )
        reader: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
        return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, AttributeError, ImportError) as error:
        raise FormatError(
            f"{folder}: the tokenizer cannot be read: {_first_line(error)}",
            hint="put the model's tokenizer.json and tokenizer_config.json into the folder",
        ) from error


def _folder_sha256(folder: Path, weights: list[Path]) -> str:
    """One hash for what decides a model's numbers: configuration, tokenizer and weights, by name and
    content."""
    others = [folder / name for name in ("config.json", *TOKENIZER_FILES) if (folder / name).is_file()]
    whole = hashlib.sha256()
    for file in sorted({*weights, *others}):
        digest = hashlib.sha256()
        for block in _blocks(file):
            digest.update(block)
        whole.update(f"{file.name} {digest.hexdigest()}\n".encode())
    return whole.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            yield block


def _check_complete(report: dict[str, Any], folder: Path) -> None:
    """transformers fills absent weights with random numbers and goes on; a model like that is nobody's."""
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        what = (
            f"lack {len(missing)} tensors" if missing else f"have {len(mismatched)} tensors of another shape"
        )
        raise FormatError(
            f"{folder}: the weights {what} that config.json asks for (first: {(missing or mismatched)[0]})",
            hint="fetch the folder again, or put config.json and the weights of one model together",
        )
    if unexpected := sorted(report.get("unexpected_keys", ())):
        log.warning("%s: %d tensors are not used (first: %s)", folder, len(unexpected), unexpected[0])


def _check_weights_finite(model: Any, folder: Path, *, dtype: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise FormatError(
                f"{folder}: weight {name} is not finite in {dtype}",
                hint="fetch the weights again" if dtype == "float32" else "load the model in float32",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
