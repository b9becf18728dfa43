"""What the files of a model folder say beside its weights, read before anything is loaded: a quantisation, an adapter,
custom code, another head, a text model inside a multimodal one. What would silently change the numbers is refused by name
or said aloud; nothing is guessed.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polysem.boundary.door import Door
from polysem.boundary.text import read_json
from polysem.errors import FormatError

log = logging.getLogger(__name__)
_SIDE = Door("configuration", "fetch the file again", missing=FormatError)

PLAIN_DTYPES = ("F16", "BF16", "F32", "F64")
"""of safetensors; weights of any other are packed or scaled numbers"""
QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
QUANTISATION_FILES = (
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
"""ModelOpt, GPTQ, AWQ and others write theirs beside config.json"""
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MULTIMODAL: Mapping[str, str] = {"gemma3": "vision_tower|multi_modal_projector"}
"""model_type whose text model stands alone -> its other parts, which are not loaded"""
TEXT_KEYS = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
}
"""tensors of the text model inside a multimodal one, by the names of transformers 4 and 5 -> names of the text model"""
_UNUSED = re.compile(r"(^|\.)(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)position_ids$")
"""buffers that older versions of transformers wrote and that are made anew: causal masks, rotary frequencies"""
_OTHER_HEADS = re.compile(r"^(score|classifier|qa_outputs|v_head)\.")


class Checkpoint(NamedTuple):
    """A folder that may be loaded."""

    config: dict[str, Any]
    """of the text model, where the folder holds a multimodal one"""
    multimodal: str
    """model_type of the whole folder, "" where that is the text model itself"""
    adapter: bool
    """whether a PEFT adapter lies beside the weights"""
    named: str
    """Hub id under which the configuration was saved, "" if it says none"""


def read_checkpoint(folder: Path, config: dict[str, Any], *, ref: str) -> Checkpoint:
    """What a folder holds, by its configuration and the names of its files.

    Raises:
        FormatError: if it is quantised.
    """
    refuse_quantised(folder, config, ref=ref)
    whole, text = config["model_type"], config.get("text_config")
    multimodal = whole in MULTIMODAL and isinstance(text, dict)
    own = {**text, "model_type": f"{whole}_text"} if multimodal and isinstance(text, dict) else config
    if multimodal:
        log.warning("%s is a multimodal %s model: its text model alone is loaded", ref, whole)
    _say_custom_code(config, ref=ref)
    _say_custom_tokenizer(folder, ref=ref)
    named = config.get("_name_or_path")
    known = (
        isinstance(named, str) and re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", named) and not Path(named).exists()
    )
    return Checkpoint(
        own,
        whole if multimodal else "",
        any((folder / name).is_file() for name in (ADAPTER, *ADAPTER_WEIGHTS)),
        str(named) if known else "",
    )


def refuse_adapter_alone(folder: Path, *, ref: str) -> None:
    """Raise FormatError if a folder holds a PEFT adapter and no model."""
    if (folder / ADAPTER).is_file() and not (folder / "config.json").exists():
        base = read_json(folder / ADAPTER, door=_SIDE).get("base_model_name_or_path")
        raise FormatError(
            f"{ref} is a PEFT adapter of {base or 'a model that it does not name'}, and no model",
            hint="merge it where it was made: model.merge_and_unload().save_pretrained(FOLDER), and give FOLDER",
        )


def refuse_quantised(folder: Path, config: Mapping[str, Any], *, ref: str) -> None:
    """Raise FormatError if the configuration, or a file beside it, declares quantised weights."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in QUANTISATION_KEYS:
            if part.get(key):
                raise _quantised(ref, f"config.json: {key} {_method(part[key])}")
    for name in QUANTISATION_FILES:
        if (folder / name).is_file():
            raise _quantised(ref, f"{name}: {_method(read_json(folder / name, door=_SIDE))}")


def refuse_packed(file: Path, *, ref: str) -> None:
    """Raise FormatError if a safetensors file holds weights that are no plain floating-point numbers."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
            dtype = tensors.get_slice(name).get_dtype()
            if dtype not in PLAIN_DTYPES and not _UNUSED.search(name):
                raise _quantised(ref, f"{file.name}: {name} is {dtype}")


def refuse_twice(files: Sequence[Path], *, ref: str) -> None:
    """Raise FormatError if two weight files hold a tensor of the same name: one of them would be taken, and nothing said."""
    from safetensors import safe_open

    seen: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if name in seen:
                    raise FormatError(
                        f"{ref}: the tensor {name} is in {seen[name].name} and in {file.name}",
                        hint="fetch the folder again: these are parts of two saved models",
                    )
                seen[name] = file


def rotary_frequencies(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of the rotary frequencies that weight files hold."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if name.endswith("rotary_emb.inv_freq"):
                    yield name, tensors.get_tensor(name)


def _quantised(ref: str, what: str) -> FormatError:
    return FormatError(
        f"{ref} is quantised ({what}); expected plain weights of {', '.join(PLAIN_DTYPES)}: scales would be lost, or "
        "packed matrices taken for weights",
        hint="give the model that it was made from, or a GGUF file (gguf:PATH), which is dequantised here",
    )


def _method(value: object) -> str:
    if not isinstance(value, dict):
        return repr(value)[:60]
    nested = value.get("quantization")
    for found in (value, nested if isinstance(nested, dict) else {}):
        named = [
            found[key] for key in ("quant_method", "quant_algo", "quant_type", "format") if found.get(key)
        ]
        if named:
            return str(named[0])
    width = next(
        (
            f"{key} = {value[key]}"
            for key in ("bits", "w_bit", "load_in_4bit", "load_in_8bit")
            if value.get(key)
        ),
        "",
    )
    return width or "of an unnamed kind"


def _say_custom_code(config: Mapping[str, Any], *, ref: str) -> None:
    """What the configuration asks for beside a plain causal model of its family, and does not get."""
    custom = config.get("auto_map")
    if custom:
        named = sorted(map(str, custom.values())) if isinstance(custom, dict) else [str(custom)]
        log.warning(
            "%s names code of its own (auto_map: %s), which is never run; it is loaded as a plain %s model",
            *(ref, ", ".join(named)[:200], config["model_type"]),
        )
    named = config.get("architectures")
    classes = [str(name) for name in named] if isinstance(named, list) else []
    if classes and not any(
        name.endswith(("ForCausalLM", "LMHeadModel", "Model", "ForConditionalGeneration")) for name in classes
    ):
        log.warning(
            "%s was saved as %s; it is loaded as a causal language model, and its own head is ignored",
            ref,
            classes[0],
        )


def _say_custom_tokenizer(folder: Path, *, ref: str) -> None:
    file = folder / "tokenizer_config.json"
    if file.is_file() and (custom := read_json(file, door=_SIDE).get("auto_map")):
        log.warning(
            "%s names a tokenizer of its own code (auto_map: %s), which is never run; its files are read by a usual class, which "
            "may cut text otherwise",
            *(ref, str(custom)[:200]),
        )


def ignored(names: list[str], checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Of tensors that a causal model does not use: (those that may be left out and are named, those that may not)."""
    other_parts = MULTIMODAL.get(checkpoint.multimodal)
    parts = re.compile(rf"^(model\.)?({other_parts})\.") if other_parts else None
    rest = [name for name in names if not _UNUSED.search(name) and not (parts and parts.search(name))]
    heads = [name for name in rest if _OTHER_HEADS.search(name)]
    return heads, [name for name in rest if name not in heads]
