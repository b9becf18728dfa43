"""Train the zoo's sparse autoencoders with sae-lens on activations of the zoo's models: seeded, resumable,
with a progress bar.

    python saes.py --books books.tar.xz --work WORK --model gpt2

The model runs once over the training text and leaves the activations of every site in one float16 file;
each autoencoder then is one run of sae-lens's own trainer over a shuffled view of it. What is finished is
kept: the activation file by the number of rows written so far, each autoencoder by its folder, which
appears only when it is complete.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import read_books, sequences, split, token_stream
from models import CONTEXT, RECIPES
from sae_lens import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from tqdm import tqdm

from polysem.models import load_model
from polysem.types import Site

EXPANSION = 8
K = 16
BATCH = 2048
ROWS_A_FORWARD = 64


@dataclass(frozen=True)
class SAERecipe:
    """One autoencoder: its folder name is the site plus `suffix`."""

    site: str
    suffix: str = ""
    kind: str = "topk"
    seed: int = 0

    @property
    def name(self) -> str:
        return self.site + self.suffix


def _sites(*layers: int) -> list[SAERecipe]:
    return [
        SAERecipe(f"blocks.{n}.{p}")
        for n in layers
        for p in ("hook_resid_post", "hook_mlp_out", "hook_attn_out")
    ]


RECIPES_OF = {
    "gpt2": [
        *_sites(1, 2),
        SAERecipe("blocks.2.hook_resid_post", "-seed1", seed=1),
        SAERecipe("blocks.2.hook_resid_post", "-jumprelu", kind="jumprelu"),
    ],
    "neox": _sites(2),
    "llama": [SAERecipe("blocks.3.hook_resid_post")],
}


def activations(model_folder: Path, rows: np.ndarray, sites: list[Site], cache: Path) -> np.ndarray:
    """[sites, rows * (context - 1), d_model] float16 of all positions but the BOS; continues an unfinished
    file."""
    model = load_model(str(model_folder))
    per_row = rows.shape[1] - 1
    shape = (len(sites), len(rows) * per_row, model.spec.d_model)
    done_file = cache.with_suffix(".rows")
    mode = "r+" if cache.exists() and done_file.exists() else "w+"
    store = np.lib.format.open_memmap(cache, mode=mode, dtype=np.float16, shape=shape)
    start = int(done_file.read_text()) if mode == "r+" else 0
    for k in tqdm(range(start, len(rows), ROWS_A_FORWARD), desc="activations", unit="batch"):
        taken = model.capture(torch.from_numpy(rows[k : k + ROWS_A_FORWARD]), sites)
        for n, site in enumerate(sites):
            block = taken[site][:, 1:].reshape(-1, shape[2]).numpy().astype(np.float16)
            store[n, k * per_row : k * per_row + len(block)] = block
        if k % (ROWS_A_FORWARD * 20) == 0:
            store.flush()
            done_file.write_text(str(k))
    store.flush()
    done_file.write_text(str(len(rows)))
    return store


def shuffled(store: np.ndarray, *, seed: int) -> Iterator[torch.Tensor]:
    """Batches [BATCH, d] without end, each pass in a new order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(store))
        for k in range(0, len(order) - BATCH + 1, BATCH):
            yield torch.from_numpy(store[np.sort(order[k : k + BATCH])].astype(np.float32))


def train(recipe: SAERecipe, acts: np.ndarray, *, model_ref: str, n_samples: int, out: Path) -> None:
    """One sae-lens training run, saved as an inference SAE in bfloat16 in SAELens's folder layout."""
    torch.manual_seed(recipe.seed)
    d_in = acts.shape[1]
    common = {
        "d_in": d_in,
        "d_sae": EXPANSION * d_in,
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(
            model_name=model_ref, hook_name=recipe.site, prepend_bos=True, context_size=CONTEXT,
            dataset_path="public-domain books", training_seed=recipe.seed,
        ),
    }  # fmt: skip
    if recipe.kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=K, **common))
    else:
        sae = JumpReLUTrainingSAE(
            JumpReLUTrainingSAEConfig(
                jumprelu_sparsity_loss_mode="tanh", l0_coefficient=2.0, l0_warm_up_steps=n_samples // BATCH // 4,
                jumprelu_init_threshold=0.1, jumprelu_bandwidth=2.0, jumprelu_ste_to_input=True,
                pre_act_loss_coefficient=3e-6, **common,
            )
        )  # fmt: skip
    steps = n_samples // BATCH
    config = SAETrainerConfig(
        total_training_samples=n_samples, train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-4, lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 3, dead_feature_window=150,
        logger=LoggingConfig(log_to_wandb=False), n_batches_for_norm_estimate=20,
    )  # fmt: skip
    sae = SAETrainer(config, sae, shuffled(acts, seed=recipe.seed)).fit()
    sae.cfg.dtype = "bfloat16"
    sae.to(torch.bfloat16)
    partial = out.with_name(out.name + ".partial")
    sae.save_inference_model(partial)
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(RECIPES_OF), required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens whose activations are kept")
    parser.add_argument(
        "--samples", type=int, default=2_000_000, help="activations each autoencoder is trained on"
    )
    args = parser.parse_args()

    folder = args.work / "models" / args.model
    recipes = RECIPES_OF[args.model]
    sites = sorted({Site.parse(r.site) for r in recipes})
    tokenizer = load_model(str(folder)).tokenizer
    train_books, _ = split(read_books(args.books))
    kind = RECIPES[args.model].tokenizer
    stream = token_stream(train_books, tokenizer, args.work / "tokens" / f"{kind}-train.npy")
    rows = sequences(stream, context=CONTEXT, bos=tokenizer.bos_token_id, n_tokens=args.tokens, seed=1)

    cache = args.work / "activations" / f"{args.model}.npy"
    cache.parent.mkdir(parents=True, exist_ok=True)
    store = activations(folder, rows, sites, cache)
    for recipe in recipes:
        out = args.work / "saes" / args.model / recipe.name
        if out.exists():
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        print(f"{args.model}/{recipe.name}", flush=True)
        acts = store[sites.index(Site.parse(recipe.site))]
        train(recipe, acts, model_ref=f"zoo:{args.model}", n_samples=args.samples, out=out)
    (args.work / "saes" / args.model / "training.json").write_text(
        json.dumps({"activations": int(store.shape[1]), "samples": args.samples, "k": K}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
