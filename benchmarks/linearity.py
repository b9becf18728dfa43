"""At which dose the gradient stops standing for the effect: R2 at every site of a model, as in
docs/linear-response.md.

    python -m benchmarks.linearity zoo:gpt2 zoo:neox zoo:llama     random directions, random token sets
    python -m benchmarks.linearity --rows                          decoder rows of every SAE of the zoo

Directions go to all positions but the first, at a stated KL. One row per site and dose: R2 of the measured odd part
by the gradient at the prompt, by the gradient averaged along the push, and of the raw change at +dose by the
gradient. Prompts are texts of the corpus whose next token is open (at least 1 nat of entropy): where it is nearly
certain no small push reaches the dose. Cost: minutes a model on one core.
"""

import argparse
import sys
import time

import torch
from tests.support.linearity import linear_validity

from polysem.linear.response import membership
from polysem.models import load_model
from polysem.models.base import WhiteBoxModel
from polysem.seeds import rng_for
from polysem.types import Site

torch.set_num_threads(1)

N_PROMPTS, N_DIRECTIONS, N_SETS, SET_SIZE = 4, 4, 4, 5
LENGTH = 16
OPEN = 1.0
"""nats of entropy of the next token"""


def open_prompts(model: WhiteBoxModel, corpus: str) -> list[torch.Tensor]:
    """The first prompts of the corpus after which many tokens may follow."""
    from polysem.corpus import token_rows
    from polysem.positions import positions_of

    found = token_rows(corpus, model, n_tokens=LENGTH * 200, context=LENGTH, positions=positions_of(model))
    kept = []
    for ids in torch.from_numpy(found.tokens):
        p = model.logits(ids[None], last_only=True)[0, -1].double().softmax(-1)
        if float(-(p * p.clamp(min=1e-30).log()).sum()) >= OPEN:
            kept.append(ids)
        if len(kept) == N_PROMPTS:
            return kept
    raise SystemExit(f"only {len(kept)} prompts of {corpus} have {OPEN} nat of entropy")


def all_sites(model: WhiteBoxModel) -> list[Site]:
    """The embedding, and every attention, MLP and stream output."""
    points = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
    return [Site(0, "hook_resid_pre"), *(Site(k, p) for k in range(model.spec.n_layers) for p in points)]


def random_world(model: WhiteBoxModel, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and target sets that know nothing of the model."""
    rng = rng_for(0, "linearity", str(site))
    directions = torch.as_tensor(rng.standard_normal((N_DIRECTIONS, model.spec.d_model)))
    sets = [rng.choice(model.spec.d_vocab, SET_SIZE, replace=False).tolist() for _ in range(N_SETS)]
    return directions, membership(sets, model.spec.d_vocab)


def rows_of_zoo() -> list[tuple[str, Site, torch.Tensor, list[list[int]]]]:
    """Per SAE of the zoo: model, site, decoder rows of its most often firing features, their own tokens."""
    import pyarrow.parquet as pq

    import polysem_zoo
    from polysem.saes import load_sae

    found = []
    for name in polysem_zoo.names("saes"):
        sae = load_sae(f"zoo:{name}")
        table = pq.read_table(polysem_zoo.path("features", name) / "features.parquet")
        own = [r for r in table.to_pylist() if len(r["tokens_in"]) >= 3 and 1e-4 < (r["density"] or 0) < 0.05]
        rng = rng_for(0, "linearity", name)
        chosen = rng.permutation(len(own))[: N_DIRECTIONS + N_SETS]
        picked = [own[int(k)] for k in chosen]
        directions = sae.W_dec.detach().double()[[r["feature"] for r in picked[:N_DIRECTIONS]]]
        sets = [r["tokens_in"] for r in picked[N_DIRECTIONS:]]
        found.append((name, sae.writes, directions, sets))
    return found


def report(
    name: str,
    model: WhiteBoxModel,
    prompts: list[torch.Tensor],
    site: Site,
    directions: torch.Tensor,
    inside: torch.Tensor,
    points: int,
    doses: list[float],
) -> None:
    """One line per dose."""
    start = time.process_time()
    rows = linear_validity(
        model, prompts, site=site, directions=directions, inside=inside, doses=doses, path_points=points
    )
    for r in rows:
        print(f"{name}\t{r.site}\t{r.dose:g}\t{r.r2:.5f}\t{r.r2_path:.6f}\t{r.r2_raw:.4f}\t{r.n}")
    print(f"  {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="zoo:NAME, a folder or a hub id")
    parser.add_argument("--rows", action="store_true", help="decoder rows of every SAE of the zoo")
    parser.add_argument("--corpus", default="zoo:samples")
    parser.add_argument("--points", type=int, default=8, help="of the path average")
    parser.add_argument("--doses", type=float, nargs="+", default=[0.01, 0.1], help="nats of KL")
    args = parser.parse_args()
    print("model\tsite\tdose\tr2\tr2_path\tr2_raw\tn")
    for ref in args.models:
        model = load_model(ref, device="cpu")
        prompts = open_prompts(model, args.corpus)
        for site in all_sites(model):
            report(ref, model, prompts, site, *random_world(model, site), args.points, args.doses)
    if args.rows:
        for name, site, directions, sets in rows_of_zoo():
            model = load_model(f"zoo:{name.partition('/')[0]}", device="cpu")
            inside = membership(sets, model.spec.d_vocab)
            report(
                name,
                model,
                open_prompts(model, args.corpus),
                site,
                directions,
                inside,
                args.points,
                args.doses,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
