"""References to models: a Hub id, a local folder or `zoo:NAME` becomes an `HFModel`, or one clear error.

Whatever the reference, what is loaded is a folder: it is checked first (configuration, family, weight files
whole and not pickled), hashed or tied to its commit, and only then given to `transformers`. Code from a
repository is never run.
"""

import errno
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from polysem.boundary.door import Door, brief, telling
from polysem.boundary.files import inside, local_path, steady
from polysem.boundary.settings import check_model_config
from polysem.boundary.tensors import check_safetensors
from polysem.boundary.text import check_plain, read_json
from polysem.errors import ConfigError, FormatError, MismatchError, StoreError, UnknownReferenceError, typed
from polysem.models.anatomy import FAMILIES, check_family
from polysem.models.base import quiet_transformers
from polysem.models.checkpoint import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    TEXT_KEYS,
    Checkpoint,
    ignored,
    read_checkpoint,
    refuse_adapter_alone,
    refuse_packed,
    refuse_twice,
    rotary_frequencies,
)
from polysem.models.gguf import gguf_folder, is_gguf, quantisation
from polysem.models.hf import HFModel
from polysem.models.objects import model_of
from polysem.profiling import counts_as
from polysem.registry import check_links, zoo_path
from polysem.store.io import sha256

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
_ABOUT = ("config.json", ADAPTER, "generation_config.json", *TOKENIZER_FILES)
_FILE = Door(hint="fetch or copy the file again", missing=FormatError)
_MODEL = Door(
    hint="fetch the folder again, or put config.json and the weights of one model together",
    missing=FormatError,
)
_TOKENIZER = Door(
    hint="put the model's tokenizer.json and tokenizer_config.json into the folder", missing=FormatError
)
_ROTARY = 0.01
"""bfloat16 rounds by 0.4 %"""
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w.-]+)?$")


@counts_as("start-up")
def load_model(
    ref: str | Path | object,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> HFModel:
    """A causal language model with its tokenizer, frozen and ready.

    Args:
        ref: Hub id (`openai-community/gpt2`), local folder, `zoo:NAME`, `package:NAME`, or a GGUF file
            (`gguf:PATH`, or a path that ends in .gguf); or a model in memory, of transformers, TransformerLens or
            nnsight (`models.objects`), which is taken over.
        tokenizer: of a model in memory, where it does not carry one.
        revision: commit, tag or branch on the Hub; for a folder, the sha256 that it is expected to have.
        dtype: of weights and activations; None is float32. Results of calls are float32 in any case (float64 for
            float64).
        device: `auto` (cuda, then mps, then cpu), which None is too, or a torch device.

    Raises:
        UnknownReferenceError: if the reference cannot be resolved: no such repository, gated, no network,
            unknown family.
        FormatError: if a file is missing, truncated, pickled, or does not hold what the configuration says.
        MismatchError: if the tokenizer does not fit the model, or the folder is not of the revision asked
            for.
        ConfigError: if dtype or device is not one that exists here; or an argument is given that what is loaded has
            of its own.
    """
    if not isinstance(ref, str | Path):
        _refuse_given("of a model in memory", revision=revision, dtype=dtype, device=device)
        return model_of(ref, tokenizer=tokenizer)
    _refuse_given("of a model that is loaded", tokenizer=tokenizer)
    ref, dtype, place = str(ref), dtype or "float32", _device(device or "auto")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    folder, commit = _locate(ref, revision=revision)
    checkpoint, weights = _checked(folder, ref=ref)
    family = checkpoint.config["model_type"]
    with steady(*weights, door=_FILE), quiet_transformers():
        found = commit or _folder_sha256(folder, weights)
        if commit is None and revision not in (None, found):
            raise MismatchError(
                f"{folder} has sha256 {found}, but revision {revision} was asked for",
                hint="leave the revision out, or put back the files it was computed from",
            )
        with _without_adapter(folder, checkpoint, ref=ref) as place_of_weights:
            model = _read_weights(
                place_of_weights, checkpoint, dtype=dtype, eager=FAMILIES[family].eager_attention
            )
        tokenizer = _read_tokenizer(folder)
    loaded = HFModel.from_parts(model.to(place), tokenizer, ref=ref, revision=found)
    loaded.spec = replace(loaded.spec, quantisation=quantisation(folder), named=checkpoint.named)
    log.info("model %s revision %s: %s, %s on %s", ref, found[:12], loaded.spec.family, dtype, place)
    return loaded


def _refuse_given(whose: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ConfigError(f"{name} = {value!r}: the {name} {whose} is its own", hint=f"leave {name} out")


def load_outline(ref: str, *, revision: str | None = None) -> HFModel:
    """The model of a reference without its weights: tokenizer, sites and widths. Of a Hub model the weights are not fetched.

    Raises:
        As `load_model`, but for the weights' values, which are not read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, commit = _locate(ref, revision=revision, files=_ABOUT)
    checkpoint, _ = _checked(folder, ref=ref, weights=commit is None)
    with quiet_transformers(), torch.device("meta"):
        with telling(_FILE, folder / "config.json", doing="describes no model"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config.text_config if checkpoint.multimodal else config)
        return HFModel.from_parts(model, _read_tokenizer(folder), ref=ref)


def _checked(folder: Path, *, ref: str, weights: bool = True) -> tuple[Checkpoint, list[Path]]:
    """What a folder holds and its weight files, of which everything is there and whole; without weights those are not
    looked at."""
    check_links(folder)
    for name in ("config.json", *TOKENIZER_FILES):
        if (folder / name).is_file() and not name.endswith(".model"):
            check_plain(folder / name, door=_FILE)
    refuse_adapter_alone(folder, ref=ref)
    checkpoint = read_checkpoint(folder, _read_config(folder, ref=ref), ref=ref)
    check_family(checkpoint.config["model_type"], ref=ref)
    if not weights:
        return checkpoint, []
    files = weight_files(folder, ref=ref)
    for file in files:
        check_safetensors(file, door=_FILE)
        refuse_packed(file, ref=ref)
    refuse_twice(files, ref=ref)
    _check_tokenizer_files(folder, ref=ref)
    return checkpoint, files


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


def _locate(
    ref: str, *, revision: str | None, files: tuple[str, ...] = (*_ABOUT, *WEIGHT_FILES)
) -> tuple[Path, str | None]:
    """The folder of a reference, and its commit if it is the Hub's."""
    if ref.startswith("zoo:"):
        return zoo_path("models", ref.removeprefix("zoo:")), None
    if is_gguf(ref):
        return gguf_folder(ref), None
    folder = local_path(ref, door=_MODEL)
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
    snapshot = _download(ref, revision=revision, files=files)
    return snapshot, snapshot.name


def _download(repo: str, *, revision: str | None, files: tuple[str, ...]) -> Path:
    """The snapshot folder of a Hub repository in the local cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:  # before RepositoryNotFoundError, whose subclass it is
        raise UnknownReferenceError(
            f"{repo} is gated: its licence must be accepted by the account whose token is used",
            hint=f"accept the licence at {page}, then set HF_TOKEN to a token of that account",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
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
            raise UnknownReferenceError(
                f"{repo} cannot be fetched: {_first_line(error)}",
                hint="check the permissions of the Hub's cache, or set HF_HOME to another folder",
            ) from error
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
    config = read_json(file, door=_FILE)
    if not isinstance(config.get("model_type"), str):
        raise FormatError(
            f"{file} has no model_type; expected the configuration of a transformers model",
            hint="an SAE's configuration belongs to load_sae; a model's names its family in model_type",
        )
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            check_model_config(part, file, door=_FILE)
    if other := config.get(
        "transformers_weights"
    ):  # which transformers would read in place of model.safetensors
        raise FormatError(
            f"{file}: transformers_weights is {brief(repr(other))}; expected the weights in model.safetensors",
            hint=f"rename that file to model.safetensors, and take transformers_weights out of {file}",
        )
    return config


def weight_files(folder: Path, *, ref: str) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        FormatError: if there are none, only pickled ones, a shard of the index is missing, or there are two sets of weights.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file() and single.is_file():
        raise FormatError(
            f"{ref}: {folder} holds two sets of weights: {single.name}, and the parts that {index.name} lists",
            hint=f"keep one of them: rm {typed(index)}, or rm {typed(single)}",
        )
    if index.is_file():
        said = read_json(index, door=_FILE)
        places = said.get("weight_map")
        if not isinstance(places, dict) or not places:
            raise _FILE.refuse(index, f"it has no weight_map with names of files, but {brief(repr(places))}")
        if not isinstance(said.get("metadata"), dict):
            raise _FILE.refuse(
                index,
                "it has no metadata, which transformers asks for",
                hint=f'add "metadata": {{}} to {index}',
            )
        files = sorted({inside(folder, name, door=_FILE, where=index) for name in places.values()})
        missing = [file.relative_to(folder) for file in files if not file.is_file()]
        if missing:
            raise FormatError(
                f"{ref}: {len(missing)} of {len(files)} weight files named in {index} are missing "
                f"(first: {missing[0]})",
                hint="fetch the missing files",
            )
        return files
    if single.is_file():
        return [single]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    seen = f"only pickled weights ({', '.join(pickles[:3])}), which are refused" if pickles else "no weights"
    raise FormatError(
        f"{ref}: {folder} holds {seen}; expected model.safetensors (a pickle can run code when it is opened)",
        hint="choose a revision with safetensors, or convert: https://huggingface.co/spaces/safetensors/convert",
    )


def _check_tokenizer_files(folder: Path, *, ref: str) -> None:
    whole = [["tokenizer.json"], ["tokenizer.model"], ["vocab.json", "merges.txt"]]
    if not any(all((folder / name).is_file() for name in names) for names in whole):
        raise FormatError(
            f"{ref}: {folder} holds no tokenizer; expected tokenizer.json, tokenizer.model, "
            "or vocab.json with merges.txt",
            hint="copy the tokenizer files of the same model into the folder",
        )


@contextmanager
def _without_adapter(folder: Path, checkpoint: Checkpoint, *, ref: str) -> Iterator[Path]:
    """The folder, or one with links to its own weights alone: transformers would take an adapter that lies beside them,
    or even the model that the adapter names, where `peft` is installed, and say nothing."""
    if not checkpoint.adapter:
        yield folder
        return
    log.warning(
        "%s: a PEFT adapter lies beside the weights (%s); it is ignored, and the folder's own weights are loaded; next: "
        "to use it, merge it: model.merge_and_unload().save_pretrained(FOLDER)",
        *(ref, ADAPTER),
    )
    with tempfile.TemporaryDirectory() as alone:
        for file in folder.iterdir():
            if file.is_file() and not file.name.startswith("adapter_"):
                (Path(alone) / file.name).symlink_to(file.resolve())
        yield Path(alone)


def _read_weights(folder: Path, checkpoint: Checkpoint, *, dtype: str, eager: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own: dict[str, Any] = {"attn_implementation": "eager"} if eager else {}
    reader: Any = AutoModelForCausalLM  # typed without the loading report
    with telling(_MODEL, folder, doing="holds weights that do not fit the configuration"):
        if checkpoint.multimodal:
            whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            own |= {"config": whole.text_config, "key_mapping": TEXT_KEYS}
        model, report = reader.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named and refused below
            **own,
        )
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # out of the mapped file, which somebody may write over
    _check_complete(report, checkpoint, folder)
    _check_rotary(model, checkpoint, folder)
    _check_weights_finite(model, folder, dtype=dtype)
    return model


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # A tokenizer.json that declares no class of its own is the whole truth. AutoTokenizer would rebuild it as
    # the class usual for the model family (transformers 5) or not know the class name of the other major
    # version (4 does not know TokenizersBackend).
    declared = folder / "tokenizer_config.json"
    name = read_json(declared, door=_TOKENIZER).get("tokenizer_class") if declared.is_file() else None
    plain = name in ("PreTrainedTokenizerFast", "TokenizersBackend") and (folder / "tokenizer.json").is_file()
    reader: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    with telling(_TOKENIZER, folder, doing="holds a tokenizer that cannot be read"):
        return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _folder_sha256(folder: Path, weights: list[Path]) -> str:
    """One hash for what decides a model's numbers, or would with other packages: configuration, tokenizer, weights and an
    adapter beside them, by name and content."""
    names = ("config.json", *TOKENIZER_FILES, ADAPTER, *ADAPTER_WEIGHTS)
    others = [folder / name for name in names if (folder / name).is_file()]
    whole = hashlib.sha256()
    for file in sorted({*weights, *others}):
        whole.update(f"{file.name} {sha256(file)}\n".encode())
    return whole.hexdigest()


def _check_rotary(model: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Older files hold the rotary frequencies that they were trained with, which transformers makes anew of config.json."""
    import torch

    scaled = [checkpoint.config.get(key) for key in ("rope_scaling", "rope_parameters")]
    if any(p.get("rope_type", p.get("type", "default")) != "default" for p in scaled if isinstance(p, dict)):
        return  # which files hold before and others after scaling
    own = [b for name, b in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    if len(own) != 1:
        return
    expected = own[0].float()
    for name, found in rotary_frequencies(weight_files(folder, ref=str(folder))):
        if found.shape != expected.shape or not torch.allclose(found.float(), expected, rtol=_ROTARY, atol=0):
            raise FormatError(
                f"{folder}: {name} of the weights is not what config.json gives: they were trained with other rotary frequencies",
                hint="put config.json and the weights of one model together (rope_theta, rope_scaling)",
            )


def _check_complete(report: dict[str, Any], checkpoint: Checkpoint, folder: Path) -> None:
    """transformers fills absent weights with random numbers, leaves out those that it has no place for, and goes on; a
    model like that is nobody's."""
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        what = (
            f"have {len(mismatched)} tensors of another shape"
            if mismatched
            else f"lack {len(missing)} tensors"
        )
        raise FormatError(
            f"{folder}: the weights {what} that config.json asks for (first: {(mismatched or missing)[0]})",
            hint="fetch the folder again, or put config.json and the weights of one model together",
        )
    heads, unused = ignored(sorted(report.get("unexpected_keys", ())), checkpoint)
    if heads:
        log.warning("%s: the head of another task is ignored: %s", folder, ", ".join(heads))
    if unused:
        raise FormatError(
            f"{folder}: the weights hold {len(unused)} tensors that config.json has no place for (first: {unused[0]}): "
            "part of the model would be left out",
            hint="put config.json and the weights of one model together; scales and zero points mean quantised weights, "
            "which are not read here",
        )


def _check_weights_finite(model: Any, folder: Path, *, dtype: str) -> None:
    for name, parameter in model.named_parameters():
        if not all(
            block.isfinite().all() for block in parameter.split(4096)
        ):  # no mask as large as the weight
            raise FormatError(
                f"{folder}: weight {name} is not finite in {dtype}",
                hint="fetch the weights again" if dtype == "float32" else "load the model in float32",
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
