"""Train the zoo's language models: seeded, resumable, with a progress bar.

    python models.py --books books.tar.xz --work WORK --model gpt2

Hidden matrices are trained by Muon (torch.optim.Muon), everything else by AdamW; transformers' Trainer does
the rest. Killing the process loses at most `SAVE_EVERY` steps; running the same command again continues.
Cost on two CPU cores with bf16 autocast: about 20, 35 and 50 minutes for gpt2, neox and llama.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import read_books, sequences, split, token_stream
from tokenizers_ import load_or_train
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

CONTEXT = 128
SAVE_EVERY = 250


@dataclass(frozen=True)
class Recipe:
    tokenizer: str
    n_tokens: int
    learning_rate: float
    seed: int = 0


RECIPES = {
    "gpt2": Recipe("byte_bpe", 12_000_000, 4e-3),
    "neox": Recipe("byte_bpe", 10_000_000, 4e-3),
    "llama": Recipe("unigram", 5_000_000, 3e-3),
}


def build(name: str, vocab_size: int, bos: int) -> PreTrainedModel:
    ids = {"bos_token_id": bos, "eos_token_id": bos, "vocab_size": vocab_size}
    if name == "gpt2":
        config = GPT2Config(
            n_embd=192,
            n_layer=4,
            n_head=4,
            n_positions=CONTEXT,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            **ids,
        )
        return GPT2LMHeadModel(config)
    if name == "neox":
        config = GPTNeoXConfig(
            hidden_size=192, num_hidden_layers=5, num_attention_heads=4, intermediate_size=768,
            max_position_embeddings=512, use_parallel_residual=True, tie_word_embeddings=False, **ids,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config)
    config = LlamaConfig(
        hidden_size=320, num_hidden_layers=6, num_attention_heads=10, num_key_value_heads=5, intermediate_size=896,
        max_position_embeddings=512, tie_word_embeddings=True, **{**ids, "eos_token_id": 2},
    )  # fmt: skip
    return LlamaForCausalLM(config)


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer to the Trainer: Muon on matrices inside the blocks, AdamW on embeddings, norms and
    biases."""

    def __init__(self, model: PreTrainedModel, lr: float):
        tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        tables.append(model.get_output_embeddings().weight)
        not_inner = {id(p) for p in tables}
        matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in not_inner]
        rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in not_inner]
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        super().__init__(matrices + rest, {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, s in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(s)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints restore every weight: the stock one drops the head of GPT-NeoX, whose
    saved name is another."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = model or self.model
        saved = type(model).from_pretrained(resume_from_checkpoint)
        model.load_state_dict(saved.state_dict())


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = torch.from_numpy(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return {"input_ids": self.rows[k], "labels": self.rows[k]}


def main() -> None:
    args = _arguments()
    recipe = RECIPES[args.model]
    set_seed(recipe.seed)
    train, held_out = split(read_books(args.books))
    sample = (b.text[:60_000] for b in train)
    tokenizer = load_or_train(recipe.tokenizer, sample, args.work / "tokenizers" / recipe.tokenizer)
    stream = token_stream(train, tokenizer, args.work / "tokens" / f"{recipe.tokenizer}-train.npy")
    bos = tokenizer.bos_token_id
    rows = sequences(
        stream, context=CONTEXT, bos=bos, n_tokens=args.tokens or recipe.n_tokens, seed=recipe.seed
    )
    model = build(args.model, len(tokenizer), bos)
    print(
        f"{args.model}: {model.num_parameters():,} parameters, {rows.size:,} tokens of {len(stream):,}",
        flush=True,
    )

    out = args.work / "checkpoints" / args.model
    batch = 32
    steps = math.ceil(len(rows) / batch)
    optimizer = MuonAdamW(model, recipe.learning_rate)

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * min(1.0, (steps - step) / (0.5 * steps))

    trainer = ResumableTrainer(
        model,
        TrainingArguments(
            output_dir=str(out), use_cpu=not torch.cuda.is_available(), bf16=True, seed=recipe.seed, report_to=[],
            num_train_epochs=1, per_device_train_batch_size=batch, max_grad_norm=1.0,
            save_steps=SAVE_EVERY, save_total_limit=2, logging_steps=50, dataloader_pin_memory=False,
        ),
        train_dataset=Rows(rows),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None)

    final = args.work / "models" / args.model
    model.eval().to(torch.bfloat16).save_pretrained(final, max_shard_size="7MB")
    tokenizer.save_pretrained(final)
    seen = {
        "tokens_seen": int(rows.size),
        "train_books": len(train),
        "held_out_books": [b.name for b in held_out],
    }
    (final / "training.json").write_text(json.dumps({**seen, "seed": recipe.seed}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True, help="books.tar.xz: one Markdown file per book")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens, checkpoints and results")
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--tokens", type=int, help="train on this many tokens instead of the recipe's number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
