"""Every door that reads a file of somebody else, with a good file of its kind: what the fuzz damages and the house counts.

`CASES[name]`: the file that is damaged, what writes it whole with the files beside it, and who reads it. The files beside it
stay whole in every trial.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import torch

from polysem.boundary import tensors, text
from polysem.boundary.door import Door
from polysem.categories import load_categories
from polysem.cli.study import kept_profile
from polysem.config import CorpusConfig, PromptsConfig, load_study, parse_study
from polysem.corpus import documents, token_rows
from polysem.engine.guard import load_concept
from polysem.glosses.cache import _read as kept_vectors
from polysem.glosses.dashboards import read_neuronpedia_features
from polysem.glosses.embedders import MiniLM, Served, WordLlama
from polysem.glosses.lexical import GloVe, WordNet
from polysem.glosses.read import read_glosses
from polysem.http import Retries
from polysem.keys import Keyring
from polysem.layers.graph import read_graph
from polysem.models.gguf import ABOUT
from polysem.models.load import load_model, load_outline
from polysem.positions import positions_of
from polysem.profiling import ROW, Profile
from polysem.prompts import make_prompts
from polysem.report.source import Run
from polysem.saes.load import load_sae
from polysem.saes.transcoders.load import load_transcoders
from polysem.side_effects.directions import Direction, read_direction, read_texts, write_direction
from polysem.side_effects.public import read_feature_table
from polysem.store import io
from polysem.store.lock import WHOLE, Holder, locked
from polysem.store.manifest import Manifest, Output, StageInputs, other_format
from polysem.store.run import ORIGIN, RunFolder
from polysem.store.tables import PROMPTS
from polysem.targets.cache import ResponseCache
from polysem.targets.parse import parse_answer, parse_samples, told
from polysem.targets.served import read_chat
from polysem.targets.tokenizer import known_tokenizer
from polysem.training.fit import Scales, State, TrainingRecipe, start
from polysem.training.harvest import StoredActivations, harvest
from polysem.training.run import restore, save
from polysem.transfer.capability import load_items
from polysem.transfer.config import load_transfer
from polysem.transfer.judges import question
from polysem.transfer.panel import load_panel
from polysem.types import Site
from polysem.worlds.tiny import tiny_model
from support import sae_fixtures, transcoder_fixtures
from support.meanings import tiny_glove, tiny_wordllama, tiny_wordnet
from support.tiny import save_tiny_model

STREAM = Site(1, "hook_resid_post")


class Case(NamedTuple):
    """One foreign file and its reader."""

    file: str
    """below the folder of a trial"""
    write: Callable[[Path], object]
    """writes it, whole, and the files beside it, into a folder"""
    read: Callable[[Path], object]
    """takes the file's path"""


def lone(file: str, content: bytes | Callable[[], bytes], read: Callable[[Path], object]) -> Case:
    """A file that lies alone."""
    return Case(
        file, lambda f: (f / file).write_bytes(content if isinstance(content, bytes) else content()), read
    )


def part(file: str, write: Callable[[Path], object], read: Callable[[Path], object]) -> Case:
    """A file of a folder; `read` takes the folder."""
    return Case(file, write, lambda p: read(p.parents[file.count("/")]))


def _template(name: str) -> bytes:
    return files("polysem.cli").joinpath(name).read_bytes()


# Glosses, corpora, prompts, tables ------------------------------------------------------------------------------------

GLOSSES = b'{"feature": 3, "gloss": "the sea", "embedding": "[0.5,2]"}\n{"feature": 4, "gloss": "kings", "embedding": [0.5, 1e3]}\n'
TABLE = b"feature,gloss,explainer,tokens\n3,\"the sea, and ships\",gpt,\"['sea', 'ship']\"\n4,kings,gpt,\"['king']\"\n"
PROMOTED = b"feature,top_10_tokens\n3,\"['sea', 'ship']\"\n4,\"['king', 'queen']\"\n"
DASHBOARD = (
    b'{"features": [{"feature_index": 3, "max_act": 4.0, "frac_nonzero": 0.01, "activations": '
    b'[{"tokens": ["the", " sea"], "values": [0.0, 4.0], "maxValue": 4.0, "id": "t1"}]}]}'
)
ACTIVATIONS = (
    b'{"index": "3", "tokens": ["the", " sea"], "values": [0.0, 2.5], "id": "a", "maxValue": 2.5}\n' * 2
)


def _glosses(path: Path) -> object:
    return read_glosses(f"file:{path}")


def _delphi(folder: Path) -> None:
    (folder / "layers.5.mlp_latent12.txt").write_text('"words about the sea"')
    (folder / "layers.5.mlp_latent13.txt").write_text("kings")


def _dashboards(folder: Path) -> object:
    return read_neuronpedia_features(str(folder), "L1", site=STREAM)


def _bucket(folder: Path) -> None:
    for kind, content in (
        ("features", b'{"index": "3", "frac_nonzero": 0.01}\n'),
        ("activations", ACTIVATIONS),
    ):
        (folder / kind).mkdir()
        (folder / kind / "batch-0.jsonl").write_bytes(content)


def _prompts(path: Path) -> object:
    model = tiny_model("gpt2")
    config = PromptsConfig(source=f"file:{path}", n=4)
    return make_prompts(config, CorpusConfig(ref="x"), model, positions=positions_of(model), seed=0)


def _several_texts(folder: Path) -> None:
    (folder / "a.txt").write_text("the sea and the ship. " * 400)
    (folder / "b.jsonl").write_text('{"text": "kings and queens"}\n' * 40)


def _laid(folder: Path) -> object:
    model = tiny_model("gpt2")
    return token_rows(str(folder), model, n_tokens=400, context=16, positions=positions_of(model))


CATEGORIES = b'colors = "red blue"\nanimals = ["dog", "the cat"]\n'
FEATURES = b"feature,cost,label\n1,0.5,sea\n2,0.25,king\n"
KEYS = b'"https://host.example/v1" = "sk-1"\n"http://localhost:8000" = "sk-2"\n'
QUESTIONS = b'{"context": "The sea is", "endings": ["blue", "loud"], "answer": 0}\n{"ctx": "A", "endings": ["b", "c"], "label": "1"}\n'
STUDY = b'name = "a"\n[model]\nref = "zoo:gpt2"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_resid_post"\n[pairs]\nbins = [0.1, 0.2]\n'


def _keys(path: Path) -> object:
    path.chmod(0o600)
    return Keyring.of({"POLYSEM_KEYS": str(path)}).key("https://host.example/v1")


# Models ---------------------------------------------------------------------------------------------------------------


def _model(folder: Path) -> None:
    save_tiny_model("gpt2", folder)


def _sharded(folder: Path) -> None:
    save_tiny_model("gpt2", folder)
    names = list(tensors.read_safetensors(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _with_adapter(folder: Path) -> None:
    save_tiny_model("gpt2", folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2", "peft_type": "LORA"}')


def _with_quantisation(folder: Path) -> None:
    save_tiny_model("gpt2", folder)
    (folder / "quantize_config.json").write_text('{"quant_method": "gptq", "bits": 4}')


def _gguf(folder: Path) -> None:
    from support.llama_cpp import write_tiny_gguf

    write_tiny_gguf(folder / "m.gguf", tiny_model("llama", d_model=32, vocab=320, tie_word_embeddings=True))


def _converted(folder: Path) -> None:
    save_tiny_model("gpt2", folder)
    (folder / ABOUT).write_text('{"quantisation": "q8_0->f32"}')


# Dictionaries ---------------------------------------------------------------------------------------------------------


def _written(writer: Callable[..., object], **more: Any) -> Callable[[Path], object]:
    return lambda folder: writer(folder, sae_fixtures.planted(), **more)


def _sae(inner: str = "", site: str | None = None) -> Callable[[Path], object]:
    return lambda folder: load_sae(str(folder / inner), site=site)


def _transcoders(dialect: str) -> tuple[Callable[[Path], object], Callable[[Path], object]]:
    writer, facts = transcoder_fixtures.WRITERS[dialect]
    return (
        lambda folder: writer(folder, transcoder_fixtures.planted(**facts)),
        lambda folder: load_transcoders(folder),
    )


def _saelens_transcoder(folder: Path) -> None:
    transcoder_fixtures.saelens(folder, transcoder_fixtures.planted(jump=True))


def _one_layer(folder: Path) -> None:
    transcoder_fixtures.gemma_scope_2_clt(
        folder, transcoder_fixtures.planted(cross=True, jump=True, layers=1)
    )


def _decode_clt(folder: Path) -> None:
    planted = transcoder_fixtures.planted(cross=True, jump=True, skip=True)
    transcoder_fixtures.decode_clt(folder, planted, norm="mean_std")


def _transcoder_cases() -> dict[str, Case]:
    inside = {
        "circuit-tracer PLT, jumprelu, skip": ("config.yaml", "layer_1.safetensors"),
        "circuit-tracer CLT, jumprelu": ("config.yaml", "W_enc_1.safetensors", "W_dec_0.safetensors"),
        "Gemma Scope": ("layer_1/params.npz",),
        "Gemma Scope 2, affine": (
            "layer_1_width_16k_l0_small_affine/config.json",
            "layer_0_width_16k_l0_small_affine/params.safetensors",
        ),
        "Gemma Scope 2 CLT, affine": ("params_layer_1.safetensors",),
        "sparsify, skip": ("layers.1.mlp/cfg.json", "config.json"),
        "clt-training": ("layers.0.mlp/cfg.json", "layers.1.mlp/sae.safetensors"),
    }
    return {
        f"transcoders, {dialect}, {file}": part(file, *_transcoders(dialect))
        for dialect, its in inside.items()
        for file in its
    }


def _sae_cases() -> dict[str, Case]:
    w, f = _written, sae_fixtures
    folder_of_2 = f"gemma-scope-2-1b-pt/resid_post/layer_{f.LAYER}_width_16k_l0_medium"
    sparse = f"sae-run/layers.{f.LAYER}"
    llama = f"Llama3_1-8B-Base-L{f.LAYER}R-8x"
    found = {
        "SAELens": (w(f.write_saelens_v6), "", ("cfg.json", "sae_weights.safetensors")),
        "dictionary_learning": (w(f.write_dictionary_learning), "", ("config.json", "ae.pt")),
        "Gemma Scope 2": (w(f.write_gemma_scope_2), folder_of_2, ("config.json", "params.safetensors")),
        "sparsify": (w(f.write_sparsify), sparse, ("cfg.json", "sae.safetensors", "../config.json")),
        "Llama Scope": (w(f.write_llama_scope), llama, ("hyperparams.json", "checkpoints/final.safetensors")),
    }
    cases = {
        f"SAE, {dialect}, {file}": part(os.path.normpath(f"{inner}/{file}").lstrip("/"), write, _sae(inner))
        for dialect, (write, inner, its) in found.items()
        for file in its
    }
    npz = f"gemma-scope-2b-pt-res/layer_{f.LAYER}/width_16k/average_l0_105"
    cases["SAE, Gemma Scope, params.npz"] = part(f"{npz}/params.npz", w(f.write_gemma_scope), _sae(npz))
    openai = f"gpt2-small/resid_post_mlp_v5_32k/autoencoders/{f.LAYER}.pt"
    cases["SAE, OpenAI checkpoint"] = part(openai, w(f.write_openai), _sae(openai))
    return cases


# Vectors, graphs, activations, checkpoints ----------------------------------------------------------------------------


def _npy() -> bytes:
    stream = BytesIO()
    np.save(stream, np.ones(16, np.float32))
    return stream.getvalue()


def _vectors(folder: Path) -> None:
    """One vector in every form that other tools write: by site, as control vector of repeng and EasySteer, a torch file."""
    vector = Direction("v", "file", STREAM, np.linspace(1, 2, 16))
    write_direction(folder, "v", vector, model_type="gpt2")
    torch.save({"layer_activations": {1: torch.ones(16)}}, folder / "v.pt")


def _direction(path: Path) -> object:
    return read_direction(path, site=STREAM)


NODES = [
    {"node_id": f"{layer}_{n}_0", "feature_type": "cross layer transcoder", "layer": str(layer)}
    for layer, n in ((0, 3), (1, 4))
]
GRAPH = json.dumps(
    {
        "metadata": {"slug": "a", "scan": "gpt2", "prompt_tokens": ["the", " sea"]},
        "qParams": {"pinnedIds": []}, "nodes": NODES,
        "links": [{"source": "0_3_0", "target": "1_4_0", "weight": 0.5}],
    }
).encode()  # fmt: skip


PROFILE = json.dumps({"product_rate": 1e9, "stages": {"plan": dict.fromkeys(ROW, 0.5)}}).encode()


def _harvest(folder: Path) -> None:
    tokens = np.arange(40, dtype=np.int32).reshape(4, 10)
    harvest(tiny_model("gpt2"), tokens, [STREAM], folder, n_special=1, about={"corpus": "drawn"})


def _stored(folder: Path) -> object:
    return np.array(StoredActivations(folder, 1, {}).part(STREAM, 0))


def _harvested_again(folder: Path) -> object:
    _harvest(folder)
    return None


def _state() -> State:
    scales = Scales(1.0, 1.0, 1.0, 1.0, torch.zeros(8), 1.0)
    return start(TrainingRecipe(d_sae=16, k=2), scales, d_in=8, autoencoder=True)


def trained() -> State:
    """A dictionary after one step."""
    state = _state()
    torch.stack([t.sum() for t in state.weights.named().values()]).sum().backward()
    state.optimizer.step()
    return state


def _checkpoint(folder: Path) -> None:
    save(trained(), folder / "state", mark="m")


# Files of a run -------------------------------------------------------------------------------------------------------


def _manifest(folder: Path) -> None:
    made_from = StageInputs("pairs", {"pairs": 1}, {}, {}, {"features/features.parquet": "0" * 64}, {})
    (folder / "pairs").mkdir()
    told_of = Manifest(made_from, {"pairs/a.parquet": Output("0" * 64, 3)}, {"device": "cpu"})
    told_of.write(folder / "pairs" / "manifest.json")


def _table(folder: Path) -> None:
    values = {f.name: [None] * 2 for f in PROMPTS.arrow()}
    fill = {"string": ["a", "b"], "int32": [0, 1], "int64": [0, 1], "bool": [True, False]}
    values = {f.name: fill.get(str(f.type), [[1], [2]]) for f in PROMPTS.arrow()}
    io.write_table(folder / "a.parquet", pa.table(values, schema=PROMPTS.arrow()), PROMPTS)


def _origin(folder: Path) -> None:
    (folder / "study.toml").write_bytes(STUDY)
    (folder / ORIGIN).write_text(json.dumps({"folder": "/tmp", "from_here": ".."}))


def _hold(folder: Path) -> None:
    gone = replace(Holder.here(), boot="another boot")
    (folder / WHOLE).write_text(json.dumps(vars(gone)))


def _lock(folder: Path) -> object:
    with locked(folder):
        return None


ANSWER = json.dumps(
    {
        "model": "m", "usage": {"prompt_tokens": 3},
        "choices": [
            {
                "message": {"content": " sea"},
                "logprobs": {
                    "content": [
                        {"token": " sea", "bytes": [32, 115], "logprob": -0.5, "top_logprobs": [
                            {"token": " sea", "bytes": [32, 115], "logprob": -0.5}, {"token": " s", "logprob": -1.0}]}
                    ]
                },
            }
        ],
    }
)  # fmt: skip
KEY = ResponseCache.key({"body": "a"})


def _kept(folder: Path) -> None:
    ResponseCache(folder).add(KEY, {"body": "a"}, ANSWER)


def _answered(path: Path) -> object:
    body = path.read_text(errors="replace")
    parse_samples(body, api="chat", n=1, where="server")
    return parse_answer(body, api="chat", k=2, where="server"), told(body, api="chat", where="server")


def _said(path: Path) -> object:
    return read_chat(path.read_text(errors="replace"), where="server")


def _judged(path: Path) -> object:
    return question(lambda *_: path.read_text(errors="replace"), {}, "related", (True, False))


EMBEDDINGS = b'{"data": [{"index": 0, "embedding": [0.5, 1.0]}, {"index": 1, "embedding": [0.25, 2.0]}]}'


def _embedded(path: Path) -> object:
    answer = httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, content=path.read_bytes()))
    )
    served = Served("m", "http://localhost:1/v1", api_key="k", client=answer, retries=Retries(attempts=1))
    return [batch.vectors.sum() for batch in served.batches(["sea", "king"])]


def _kept_vectors(folder: Path) -> None:
    arrays = {"texts": np.zeros((2, 32), np.uint8), "vectors": np.ones((2, 4), np.float32)}
    io.write_arrays(folder / "a.safetensors", arrays)


def _minilm(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert = BertModel(BertConfig(vocab_size=8, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    bert.save_pretrained(folder)
    tokenizer = (
        tiny_wordllama(folder / "words", {"sea": [1.0], "king": [2.0]}) / "wordllama" / WordLlama.FILES[1]
    )
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def _vectors_of(embedder: Any) -> object:
    return [batch.vectors.sum() for batch in embedder.batches(["sea", "king"])]


WORDS = {"sea": (1, 0), "ship": (0.6, 0.8)}
NEAR = ([("sea",)], [("ship",)])
BESIDE = ([("dog", "joy"), ("happy",)], [("cat", "doggies"), ("joy",)])


CASES: dict[str, Case] = {
    "glosses, lines": lone("g.jsonl", GLOSSES, _glosses),
    "glosses, JSON": lone("g.json", b'{"3": "the sea", "4": ["kings"]}', _glosses),
    "glosses, table": lone("g.csv", TABLE, _glosses),
    "glosses, promoted tokens": lone("g.csv", PROMOTED, _glosses),
    "glosses, packed": lone("g.jsonl.gz", zlib.compress(GLOSSES, wbits=31), _glosses),
    "glosses, delphi's folder": part("layers.5.mlp_latent12.txt", _delphi, _glosses),
    "export": lone("batch-0.jsonl", GLOSSES, lambda p: read_glosses(f"neuronpedia:{p.parent}")),
    "dashboards": lone("batch-0.json", DASHBOARD, lambda p: _dashboards(p.parent)),
    "dashboards, features": part("features/batch-0.jsonl", _bucket, _dashboards),
    "dashboards, activations": part("activations/batch-0.jsonl", _bucket, _dashboards),
    "corpus, lines": lone("c.jsonl", b'{"text": "the sea"}\n' * 3, lambda p: list(documents(str(p)))),
    "corpus, JSON": lone("c.json", b'["the sea", "kings"]', lambda p: list(documents(str(p)))),
    "corpus, text": lone("c.txt", b"the sea\n\nthe king\n", lambda p: list(documents(str(p)))),
    "corpus, folder, text": part("a.txt", _several_texts, _laid),
    "corpus, folder, lines": part("b.jsonl", _several_texts, _laid),
    "corpus, lines by content": lone("c.txt", b'{"text": "the sea"}\n' * 3, lambda p: list(documents(str(p)))),
    "prompts, text": lone("p.txt", b"It was the\nAt the sea the king\n", _prompts),
    "prompts, lines": lone("p.jsonl", b'{"text": "It was the"}\n{"text": "At the sea"}\n', _prompts),
    "texts of a difference": lone("more.txt", b"the sea\nthe ship\n", read_texts),
    "study": lone("study.toml", STUDY, load_study),
    "transfer study": lone("transfer.toml", _template("transfer.toml"), load_transfer),
    "panel": lone("judges.toml", _template("judges.toml"), load_panel),
    "concept": lone("concept.toml", _template("concept.toml"), load_concept),
    "questions": lone("q.jsonl", QUESTIONS, load_items),
    "word table": lone("w.toml", CATEGORIES, lambda p: load_categories(str(p), ["colors", "animals"])),
    "published features": lone("f.csv", FEATURES, read_feature_table),
    "keys": lone("keys.toml", KEYS, _keys),
    "model configuration": part("config.json", _model, lambda f: load_outline(str(f))),
    "tokenizer": part("tokenizer.json", _model, lambda f: load_outline(str(f))),
    "tokenizer settings": part("tokenizer_config.json", _model, lambda f: load_outline(str(f))),
    "tokenizer of a target": part("tokenizer.json", _model, lambda f: known_tokenizer(str(f)).count("the sea")),
    "model weights": part("model.safetensors", _model, lambda f: load_model(str(f))),
    "index of model weights": part("model.safetensors.index.json", _sharded, lambda f: load_model(str(f))),
    "adapter": part("adapter_config.json", _with_adapter, lambda f: load_model(str(f))),
    "quantisation of a model": part("quantize_config.json", _with_quantisation, lambda f: load_model(str(f))),
    "GGUF model, as it was kept": part(ABOUT, _converted, lambda f: load_model(str(f))),
    "GGUF model": part("m.gguf", _gguf, lambda f: load_model(f"gguf:{f / 'm.gguf'}")),
    **_sae_cases(),
    "SAE, alone": part("ae.pt", _written(sae_fixtures.write_dictionary_learning), lambda f: load_sae(
        str(f / "ae.pt"), site=str(STREAM))),
    **_transcoder_cases(),
    "transcoders, Gemma Scope 2 CLT, the first file": part("params_layer_0.safetensors", _one_layer, load_transcoders),
    **{
        f"transcoders, decode-clt, {name}": part(name, _decode_clt, load_transcoders)
        for name in ("cfg.json", "norm_stats.json", "clt_checkpoint_latest.safetensors")
    },
    "transcoder, SAELens, cfg.json": part("cfg.json", _saelens_transcoder, load_transcoders),
    "transcoder, SAELens, weights": part("sae_weights.safetensors", _saelens_transcoder, load_transcoders),
    "direction, npy": lone("v.npy", _npy, _direction),
    "direction, safetensors": part("v.safetensors", _vectors, lambda f: _direction(f / "v.safetensors")),
    "direction, control vector": part("v.gguf", _vectors, lambda f: _direction(f / "v.gguf")),
    "direction, torch": part("v.pt", _vectors, lambda f: _direction(f / "v.pt")),
    "attribution graph": lone("g.json", GRAPH, read_graph),
    "stored activations": part(f"{STREAM}/part-00000.npy", _harvest, _stored),
    "account of stored activations": part("harvest.json", _harvest, _harvested_again),
    "checkpoint of a training": part("state", _checkpoint, lambda f: restore(_state(), f / "state", mark="m")),
    "MiniLM, configuration": part("config.json", _minilm, lambda f: _vectors_of(MiniLM(f))),
    "MiniLM, tokenizer": part("tokenizer.json", _minilm, lambda f: _vectors_of(MiniLM(f))),
    "MiniLM, weights": part("model.safetensors", _minilm, lambda f: _vectors_of(MiniLM(f))),
    **{
        f"wordllama, {file}": part(f"wordllama/{file}", lambda f: tiny_wordllama(f, {"sea": [1.0], "king": [2.0]}),
                                   lambda f: _vectors_of(WordLlama(f / "wordllama")))
        for file in WordLlama.FILES
    },
    **{
        f"GloVe, {file}": part(file, lambda f: tiny_glove(f, WORDS), lambda f: GloVe(str(f)).compare(*NEAR))
        for file in ("glove_tiny_emb.npy", "glove_tiny_index.parquet")
    },
    **{
        f"WordNet, {file}": part(file, tiny_wordnet, lambda f: WordNet(str(f)).compare(*BESIDE))
        for file in ("index.noun", "data.noun", "noun.exc")
    },
    "embeddings that were kept": part("a.safetensors", _kept_vectors, lambda f: kept_vectors(f / "a.safetensors")),
    "embeddings of a server": lone("a.json", EMBEDDINGS, _embedded),
    "answer of a server": lone("a.json", ANSWER.encode(), _answered),
    "words of a server": lone("a.json", ANSWER.encode(), _said),
    "reply of a judge": lone("a.json", b'{"related": true}', _judged),
    "kept response": part(f"{KEY[:2]}/{KEY}.json.gz", _kept, lambda f: ResponseCache(f).find(KEY)),
    "manifest": part("pairs/manifest.json", _manifest, lambda f: (
        other_format(f), Manifest.read(f / "pairs/manifest.json", rebuild="polysem run"))),
    "profile that was kept": lone("profile.json", PROFILE, lambda p: kept_profile(p.parent, Profile())),
    "run's study": part("study.toml", _origin, lambda f: RunFolder.open(f).study()),
    "run's study, written over": part("study.toml", _origin, lambda f: RunFolder(f).foreign(parse_study(STUDY.decode()))),
    "run's study, reported": part("study.toml", _origin, Run.open),
    "run's places": part(ORIGIN, _origin, lambda f: RunFolder.open(f).places()),
    "run's table": part("a.parquet", _table, lambda f: io.read_table(f / "a.parquet", PROMPTS, rebuild="polysem run")),
    "lock": part(WHOLE, _hold, _lock),
    "torch file": part("ae.pt", _written(sae_fixtures.write_dictionary_learning), lambda f: tensors.read_torch(f / "ae.pt")),
    "settings": lone("a.json", b'{"a": 1, "b": [true, null, 0.5]}', lambda p: text.read_json(p, door=Door())),
}  # fmt: skip

NEEDS = {"GGUF model": "gguf", "direction, control vector": "gguf"}
"""package without which a case cannot be written or read"""
FORGIVING = {
    "glosses, delphi's folder", "lock", "reply of a judge", "WordNet, noun.exc", "tokenizer settings", "run's study, written over", "GGUF model, as it was kept",
}  # fmt: skip
"""of which most damage is passed over: a lock that no process of ours wrote holds nobody; a reply that is none is a missing one;
of the others most is not needed"""
