"""Special positions are the same for all who ask: the first of a row, massive tokens, what a chat template writes, and text
that only looks like a special token."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polysem.config import CorpusConfig, PromptsConfig
from polysem.corpus import token_rows
from polysem.errors import ConfigError, MismatchError
from polysem.features import feature_table
from polysem.features.best import HarvestPlan
from polysem.features.harvest import harvest
from polysem.models import load_model
from polysem.models.hf import HFModel
from polysem.models.text import chat_row
from polysem.plan.signals import activations_on
from polysem.positions import MASSIVE, PLAIN, RowsBegin, mean_norm, positions_of, positions_of_all
from polysem.prompts import make_prompts, span_of
from polysem.saes import load_sae
from polysem.types import Site
from polysem.worlds.tiny import tiny_model
from support.tiny import save_tiny_model

SITE = "blocks.0.hook_resid_post"
WORDS = "the old man looked at the sea for a long time, and the children of the king had gone to the forest. "


# the policy


class NoBOS:
    """A tokenizer like Qwen's: it ends texts, and begins none."""

    def __init__(self, model, *, eos: int | None):
        self._model = model
        self.tokenizer = copy.deepcopy(model.tokenizer)
        self.tokenizer.bos_token = None
        if eos is None:
            self.tokenizer.eos_token = None

    bos_id = None

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_what_stands_in_front_of_rows():
    model = tiny_model("qwen2")
    assert positions_of(model).row([5, 6]) == [0, 5, 6]
    assert positions_of(model, False).front == ()
    bare = NoBOS(model, eos=0)
    assert positions_of(bare).front == ()
    assert positions_of(bare, RowsBegin(True)).front == ()
    assert positions_of(bare, RowsBegin(True, "eos")).front == (0,)
    assert positions_of(bare, RowsBegin(False, "eos")).front == ()
    assert positions_of(NoBOS(model, eos=None), RowsBegin(True, "eos")).front == ()
    assert "TransformerLens puts EOS" in positions_of(bare, RowsBegin(True, "eos")).said
    several = [RowsBegin(False), RowsBegin(True)]
    assert positions_of_all(model, several).front == (0,)


def test_which_positions_are_counted():
    assert PLAIN.counted(4).tolist() == [False, True, True, True]
    assert PLAIN.counted(5, span=(2, 4)).tolist() == [False, False, True, True, False]
    assert PLAIN.counted(3, span=(0, 2)).tolist() == [False, True, False]
    norms = np.array([1.0, 1.1, MASSIVE * 1.05 * 1.01, 0.9, 1.0])
    assert PLAIN.ordinary(norms).tolist() == [True, True, False, True, True]
    assert PLAIN.limit(np.zeros(4)) == float("inf")
    assert PLAIN.limit(np.zeros(0)) == float("inf")
    edited = np.ones(5, dtype=bool)
    assert mean_norm(norms, edited) == pytest.approx(1.0)
    only = np.array([False, False, True, False, False])
    assert mean_norm(norms, only) == norms[2], "an edit at a massive token alone is dosed by it"


# who asks


class Sinks:
    """A model whose first position, and whose commas where asked for, are far away in the stream."""

    def __init__(self, model, *, commas: bool, norm: float = 5000.0):
        self._model, self._norm, self._commas = model, norm, commas
        self._comma = model.tokenize("a,", prepend_bos=False)[-1]

    def __getattr__(self, name):
        return getattr(self._model, name)

    def capture(self, tokens, sites, edits=()):
        seen = self._model.capture(tokens, sites, edits)
        far = torch.zeros(tokens.shape, dtype=torch.bool)
        far[:, 0] = True
        far |= (tokens.cpu() == self._comma) & self._commas
        step = self._norm * torch.ones(self.spec.d_model) / self.spec.d_model**0.5
        return {site: x + step * far[..., None] for site, x in seen.items()}


def exact_sae(folder: Path, d: int, *, sparse: bool = False, **fields) -> Path:
    """A SAELens folder whose 2 d live features reconstruct everything; 2 d more are dead. A sparse one reconstructs
    little: its 4 d features lie anywhere and fire rarely."""
    decoder = torch.zeros(4 * d, d)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    decoder[:d], decoder[d : 2 * d] = basis, -basis
    bias = torch.cat([torch.zeros(2 * d), torch.full((2 * d,), -1.0)])
    if sparse:
        decoder = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=generator), dim=1)
        bias = torch.full((4 * d,), -2.0)
    folder.mkdir(parents=True)
    save_file(
        {
            "W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_dec": torch.zeros(d), "b_enc": bias,
        },
        folder / "sae_weights.safetensors",
    )  # fmt: skip
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "standard",
                "d_in": d,
                "d_sae": 4 * d,
                "metadata": {"sae_lens_version": "6.0.0", "hook_name": SITE, **fields},
            }
        )
    )
    return folder


@pytest.mark.parametrize("bos", [False, True])
def test_the_harvest_leaves_out_what_the_gate_leaves_out(tmp_path, bos):
    """An SAE that was trained without BOS sees a sink at the first position all the same: it is no feature's maximum."""
    (tmp_path / "corpus.txt").write_text(WORDS * 60)
    plain = tiny_model("llama", vocab=64)
    sae = load_sae(str(exact_sae(tmp_path / "sae", 16, prepend_bos=bos)))
    rows = token_rows(
        str(tmp_path / "corpus.txt"), plain, n_tokens=2000, context=32, positions=positions_of(plain, sae)
    )
    comma = Sinks(plain, commas=True)._comma
    plan = HarvestPlan(4, 8, 6)
    without = harvest(plain, {"a": sae}, rows, plan=plan)["a"]
    first = harvest(Sinks(plain, commas=False), {"a": sae}, rows, plan=plan)["a"]
    for name, values in without.arrays().items():
        np.testing.assert_array_equal(values, first.arrays()[name], err_msg=name)
    both = harvest(Sinks(plain, commas=True), {"a": sae}, rows, plan=plan)["a"]
    n_commas = int((rows.tokens[:, 1:] == comma).sum())
    assert n_commas
    assert both.n_positions[0] == without.n_positions[0] - n_commas
    assert comma not in both.token_id
    assert (without.context_peak[without.context_row >= 0] > 0).all()
    assert both.max_act.max() < 100


def test_activations_for_the_plan_leave_them_out(tmp_path):
    model = Sinks(tiny_model("llama", vocab=64), commas=True)
    texts = [model.tokenize(WORDS, prepend_bos=bos) for bos in (True, False)]
    found = activations_on(model, Site.parse(SITE), texts)
    n_commas = sum(ids[1:].count(model._comma) for ids in texts)
    assert len(found) == sum(len(ids) - 1 for ids in texts) - n_commas
    assert np.linalg.norm(found, axis=1).max() < 100


# tokenizers without BOS


def test_a_bos_that_there_is_not_is_an_error(tmp_path):
    folder = save_tiny_model("qwen2", tmp_path / "m")
    model = load_model(str(folder), device="cpu")
    bare = NoBOS(model, eos=None)
    with pytest.raises(MismatchError, match="has neither BOS nor EOS") as caught:
        load_sae(str(exact_sae(tmp_path / "sae", 16)), model=bare, prepend_bos=True)
    assert "prepend_bos = false" in str(caught.value.hint)
    for followed in (False, None):  # what the hint names, and leaving it out
        load_sae(str(tmp_path / "sae"), model=bare, prepend_bos=followed)


def test_qwen_scope_runs_without_bos(tmp_path):
    folder = tmp_path / "SAE-Res-Qwen2-0.5B-W32K-L0_4"
    folder.mkdir()
    weights = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    torch.save(
        {
            "W_enc": weights,
            "W_dec": weights.T.contiguous(),
            "b_enc": torch.zeros(64),
            "b_dec": torch.zeros(16),
        },
        folder / "layer0.sae.pt",
    )
    sae = load_sae(str(folder / "layer0.sae.pt"))
    model = NoBOS(tiny_model("qwen2"), eos=0)
    assert positions_of(model, sae).front == ()
    (tmp_path / "corpus.txt").write_text(WORDS * 40)
    table = make_prompts(
        PromptsConfig(source="templates", n=3),
        CorpusConfig(),
        model,
        positions=positions_of(model, sae),
        seed=0,
    )
    assert table.num_rows == 3


def test_a_whole_corpus_section_is_taken_and_a_wrong_value_is_the_products_error(tmp_path):
    (tmp_path / "corpus.txt").write_text(WORDS * 40)
    model = tiny_model("llama")
    sae = load_sae(str(exact_sae(tmp_path / "sae", 16)))
    asked = {"ref": str(tmp_path / "corpus.txt"), "n_tokens": 500, "context": 16}
    whole = feature_table(sae, model, corpus=CorpusConfig(**asked), n_contexts=2)
    parts = feature_table(sae, model, corpus=asked["ref"], n_tokens=500, context=16, n_contexts=2)
    assert whole.features.equals(parts.features)
    with pytest.raises(ConfigError, match="context = 1"):
        feature_table(sae, model, corpus=asked["ref"], context=1)


# text that looks like special tokens, and templates


def with_tokenizer(backend: Tokenizer, **special: str) -> HFModel:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return HFModel.from_parts(tiny_model("llama", vocab=512).model, tokenizer)


def unigram() -> HFModel:
    """A tokenizer that has its special tokens among the pieces of its model, as those of SentencePiece do."""
    letters = sorted(set("thecatsINST[]<>/.,abdlr\n"))
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁the", -1.0),
        ("▁", -2.0),
        *((c, -5.0) for c in letters),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return with_tokenizer(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_2() -> HFModel:
    """A tokenizer with a prefix space, like Llama 2's."""
    alphabet = sorted(set("▁[]/INSTtellmabouhcr.,<>s_"))
    merges = [("▁", "T"), ("e", "l"), ("el", "l")]
    vocab = {p: i for i, p in enumerate(["<unk>", "<s>", "</s>", *alphabet, *("".join(m) for m in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = with_tokenizer(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model.tokenizer.chat_template = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
    return model


@pytest.mark.parametrize(
    "text", ["the <s> the", "the</s><s>the", "<s>", "</s>", "<s><s>", "a<s", "the <s>cat</s> sat."]
)
def test_text_that_spells_a_special_token_stays_text(text):
    model = unigram()
    ids = model.tokenize(text, prepend_bos=False)
    assert not {1, 2} & set(ids)
    assert model.detokenize(ids) == text
    assert model.tokenize(text, prepend_bos=True) == [1, *ids]
    found = model.located(text)
    assert found.ids == ids
    assert [end for _, end in found.spans] == sorted(end for _, end in found.spans)
    assert found.spans[-1][1] == len(text)


def test_a_corpus_that_separates_by_special_tokens_has_none(tmp_path):
    model = unigram()
    (tmp_path / "corpus.txt").write_text("the cat sat.</s><s>" * 60)
    rows = token_rows(
        str(tmp_path / "corpus.txt"), model, n_tokens=400, context=16, positions=positions_of(model)
    )
    assert (rows.tokens[:, 0] == 1).all()
    assert not np.isin(rows.tokens[:, 1:], [1, 2]).any()


def test_a_template_is_tokenized_whole_with_a_prefix_space(tmp_path):
    model = llama_2()
    text = "Tell me about the ..."
    row = chat_row(model, text)
    message = [{"role": "user", "content": text}]
    assert row.ids == model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    pieces = model.tokenizer.convert_ids_to_tokens(row.ids)
    at = pieces.index("▁T")
    assert pieces[at - 1] == "]", "no space of its own in front of the message"
    start, stop = row.span
    assert model.detokenize(row.ids[start:stop]).strip() == text
    assert pieces[start] == "▁T"


def test_a_special_token_in_a_message_stays_text_in_the_template():
    model = llama_2()
    row = chat_row(model, "Tell <s> me </s> about")
    assert row.ids.count(1) == 1
    assert row.ids[0] == 1
    assert 2 not in row.ids
    start, stop = row.span
    assert model.detokenize(row.ids[start:stop]).strip() == "Tell <s> me </s> about"
    assert span_of(row.ids, "Tell <s> me </s> about", model) == row.span


def test_the_policy_reaches_the_log(caplog, tmp_path):
    model = tiny_model("llama")
    with caplog.at_level(logging.INFO, logger="polysem"):
        load_sae(str(exact_sae(tmp_path / "sae", 16)), model=model)
    assert "BOS (token 0) in front of every row" in caplog.text
    sae = replace(load_sae(str(tmp_path / "sae")), prepend_bos=False)
    assert "rows begin with their text" in positions_of(model, sae).said
