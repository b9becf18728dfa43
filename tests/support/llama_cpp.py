"""llama.cpp's own server in this process (package xllamacpp), and a model of the zoo as the file that it reads.

file = write_gguf(path, load_model("zoo:llama", device="cpu"))
with LlamaServer(file) as server:
    ... server.url ...
"""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""types of tokens in the format"""


class LlamaServer:
    """A running server; use it as a context."""

    def __init__(self, file: Path, *, context: int = 1024, parallel: int = 1, embeddings: bool = False):
        """
        Args:
            file: of the model.
            context: tokens, of all that run side by side.
            parallel: choices that one request may ask for.
            embeddings: whether it serves these, and nothing else.
        """
        self.file, self.context, self.parallel, self.embeddings = file, context, parallel, embeddings

    def __enter__(self) -> "LlamaServer":
        import xllamacpp

        with _silent():
            params = xllamacpp.CommonParams()
            params.model.path = str(self.file)
            params.n_ctx, params.n_parallel, params.n_threads_http = self.context, self.parallel, 2
            params.embedding = self.embeddings
            if self.embeddings:
                params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
            params.port, params.warmup, params.verbosity = 0, False, -1
            self._server: Any = xllamacpp.Server(params)
        self.url: str = self._server.listening_address
        self.model = str(self.file)
        """the name under which it answers: it takes no notice of the one that it is asked for"""
        return self

    def __exit__(self, *exception: object) -> None:
        with _silent():
            del self._server


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The server writes its log to the process's own error stream."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def write_gguf(path: Path, model: Any) -> Path:
    """A Llama with a unigram tokenizer as a file of float32 weights."""
    writer = llama_writer(path, model)
    _add_unigram(writer, model.tokenizer)
    for name, value in llama_tensors(model):
        writer.add_tensor(name, value)
    return finish(writer, path)


def byte_tokenizer() -> tuple[list[str], list[str]]:
    """A byte-pair vocabulary of the 256 bytes and a few merges, and the merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["Ġ t", "h e", "Ġ a", "i n"]
    return ["<|endoftext|>", *bytes_to_unicode().values(), *("".join(m.split()) for m in merges)], merges


def write_tiny_gguf(
    path: Path, model: Any, *, architecture: str = "llama", pre: str = "smollm", types: str | None = None
) -> Path:
    """A Llama as a GGUF file with a byte-pair tokenizer, its large matrices in Q8_0, or all of it in float32."""
    import gguf

    writer = llama_writer(path, model, architecture)
    tokens, merges = byte_tokenizer()
    tokens += [f"<pad{n}>" for n in range(model.model.config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    for name, value in llama_tensors(model):
        if value.ndim == 2 and types is None:
            packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value)
    return finish(writer, path)


def llama_writer(path: Path, model: Any, architecture: str = "llama") -> Any:
    """A writer of the file, its sizes written."""
    import gguf

    config = model.model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    return writer


def llama_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a Llama under its name in the format, float32."""
    config = model.model.config
    for name, tensor in model.model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            yield _tensor(name, tensor.float().numpy(), config)


def finish(writer: Any, path: Path) -> Path:
    """The file, written."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensor(name: str, value: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    bare = name.removeprefix("model.").removesuffix(".weight")
    for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if bare.endswith(part):  # the format's order of the halves of rotated pairs
            half = value.shape[0] // heads // 2
            value = value.reshape(heads, 2, half, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if bare in top:
        return f"{top[bare]}.weight", value
    _, layer, rest = bare.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.weight", np.ascontiguousarray(value)


def _add_unigram(writer: Any, tokenizer: Any) -> None:
    rows = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    special = {tokenizer.bos_token, tokenizer.eos_token}
    types = [
        UNKNOWN if t == tokenizer.unk_token else CONTROL if t in special
        else BYTE if len(t) == 6 and t.startswith("<0x") else NORMAL
        for t, _ in rows
    ]  # fmt: skip
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([t for t, _ in rows])
    writer.add_token_scores([score for _, score in rows])
    writer.add_token_types(types)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(False)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)


class LlamaLibrary:
    """The C interface of the llama.cpp inside xllamacpp, which gives its server no control vectors."""

    def __init__(self, file: Path, vocabulary: int = 4096):
        """
        Args:
            file: of the model.
            vocabulary: its tokens; by default those of the zoo's Llama.
        """
        import ctypes

        import xllamacpp

        self.vocabulary = vocabulary
        c = self._c = ctypes
        module = importlib.import_module("xllamacpp.xllamacpp")
        lib = self._lib = c.CDLL(module.__file__)
        # structures that are passed by value and given back as they came: larger than any of them
        blob = type("Blob", (c.Structure,), {"_fields_": [("_", c.c_uint64 * 64)]})
        for name, result, arguments in (
            ("llama_model_default_params", blob, []),
            ("llama_context_default_params", blob, []),
            ("llama_model_load_from_file", c.c_void_p, [c.c_char_p, blob]),
            ("llama_init_from_model", c.c_void_p, [c.c_void_p, blob]),
            ("llama_batch_get_one", blob, [c.POINTER(c.c_int32), c.c_int32]),
            ("llama_decode", c.c_int32, [c.c_void_p, blob]),
            ("llama_get_logits_ith", c.POINTER(c.c_float), [c.c_void_p, c.c_int32]),
            ("llama_set_adapter_cvec", c.c_int32, [c.c_void_p, c.c_void_p, c.c_size_t, *[c.c_int32] * 3]),
            ("llama_free", None, [c.c_void_p]),
            ("llama_model_free", None, [c.c_void_p]),
        ):
            getattr(lib, name).restype, getattr(lib, name).argtypes = result, arguments
        assert xllamacpp.Server  # importing it starts the backends
        with _silent():
            self._model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        assert self._model, file

    def close(self) -> None:
        self._lib.llama_model_free(self._model)

    def vector(self, file: Path, strength: float) -> np.ndarray:
        """The rows of layers 1, 2, ... of a file at a strength, as its command line lays them out for the library: direction.N
        is row N - 1, zeros where there is none."""
        import gguf

        found = {int(t.name.removeprefix("direction.")): t.data for t in gguf.GGUFReader(file).tensors}
        rows = np.zeros((max(found), len(next(iter(found.values())))), dtype=np.float32)
        for layer, row in found.items():
            rows[layer - 1] = strength * row
        return rows

    def logits(self, ids: list[int], vector: np.ndarray | None = None) -> np.ndarray:
        """Of the last token, with a control vector on all positions."""
        c, lib = self._c, self._lib
        with _silent():
            context = lib.llama_init_from_model(self._model, lib.llama_context_default_params())
            try:
                if vector is not None:
                    rows = np.ascontiguousarray(vector, dtype=np.float32)
                    place, layers = rows.ctypes.data, (rows.shape[1], 1, len(rows))
                    assert lib.llama_set_adapter_cvec(context, place, rows.size, *layers) == 0
                tokens = (c.c_int32 * len(ids))(*ids)
                assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))) == 0
                found = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (self.vocabulary,))
                return found.copy()
            finally:
                lib.llama_free(context)
