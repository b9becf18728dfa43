"""`polysem train-sae`: a sparse dictionary of a model's site, trained here."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from polysem.boundary.files import local_path
from polysem.cli.shell import AsJson, numbers_of, print_json, verb
from polysem.errors import ConfigError


@verb
def train_sae(
    model: Annotated[
        str, Argument(metavar="MODEL", help="Model: Hub id, folder, zoo:NAME, package:NAME, .gguf.")
    ],
    site: Annotated[str, Option(help="Where it reads, as blocks.14.hook_resid_post.")],
    corpus: Annotated[str, Option(help="Text: zoo:NAME, a file or a folder.")],
    out: Annotated[Path, Option(metavar="DIR", help="The dictionary's folder.")],
    writes: Annotated[str, Option(help="What it reconstructs; default the site itself.")] = "",
    work: Annotated[Path | None, Option(metavar="DIR", help="Activations; default OUT.work.")] = None,
    tokens: Annotated[int, Option(min=1, help="Tokens run through the model once.")] = 2_000_000,
    epochs: Annotated[float, Option(min=0.0, help="Times each is trained on.")] = 3.0,
    context: Annotated[int, Option(min=2, help="Tokens of a row, BOS included.")] = 128,
    latents: Annotated[int, Option(min=2, help="Latents.")] = 4608,
    k: Annotated[int, Option(min=1, help="Active latents a token.")] = 48,
    select: Annotated[Literal["topk", "batchtopk"], Option(help="How active ones are chosen.")] = "topk",
    prefixes: Annotated[str, Option(help="Nested sizes, as 288,576,1152: Matryoshka.")] = "",
    skip: Annotated[bool, Option("--skip", help="A linear path beside the latents.")] = False,
    batch: Annotated[int, Option(min=1, help="Tokens of a step.")] = 4096,
    lr: Annotated[float, Option(min=0.0, help="Largest learning rate.")] = 1e-3,
    seed: Annotated[int, Option(help="Of weights and order.")] = 0,
    dtype: Annotated[str, Option(help="The model runs in.")] = "bfloat16",
    device: Annotated[str, Option(help="auto, cpu, cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a sparse dictionary: activations once to disk, then as many epochs as wanted. Goes on where it stopped."""
    from polysem.corpus import token_rows
    from polysem.models import load_model
    from polysem.positions import positions_of
    from polysem.progress import on_stderr
    from polysem.training.fit import TrainingRecipe
    from polysem.training.harvest import harvest
    from polysem.training.run import Split, train_dictionary
    from polysem.types import Site

    reads = Site.parse(site)
    target = Site.parse(writes) if writes else reads
    if target != reads and select == "topk":
        raise ConfigError(
            "SAELens has no TopK transcoder", hint="add --select batchtopk: it is written as JumpReLU"
        )
    sizes = numbers_of(prefixes, "--prefixes", "288,576,1152")
    if k > latents or list(sizes) != sorted({n for n in sizes if 0 < n < latents}):
        raise ConfigError(
            f"k is {k} and prefixes {sizes}; expected k and rising prefixes below {latents} latents"
        )
    if not (0 < epochs < float("inf") and 0 < lr < float("inf")):
        raise ConfigError(f"--epochs {epochs:g} and --lr {lr:g}; expected numbers above 0")
    named = local_path(out).absolute()
    if not named.name:
        raise ConfigError(f"--out {out}: expected a folder with a name")
    place = work or named.with_name(named.name + ".work")
    report = on_stderr()
    with report.stage("model and text"):
        loaded = load_model(model, dtype=dtype, device=device)
        positions = positions_of(loaded)
        rows = token_rows(corpus, loaded, n_tokens=tokens, context=context, positions=positions)
    about = {
        "model": model,
        "revision": loaded.spec.revision,
        "dtype": dtype,
        "corpus": corpus,
        "context": context,
    }
    with report.stage(f"dictionary {out.name}"):
        kept = harvest(
            loaded, rows.tokens, sorted({reads, target}), place / "activations",
            n_special=positions.n_first, about=about, reporter=report,
        )  # fmt: skip
        steps = max(1, round(epochs * kept.n_tokens / batch))
        recipe = TrainingRecipe(
            d_sae=latents,
            k=k,
            select=select,
            prefixes=sizes,
            skip=skip,
            seed=seed,
            batch=batch,
            steps=steps,
            lr=lr,
        )
        card = train_dictionary(
            Split(kept, reads, target), recipe, out,
            checkpoint=place / f"{named.name}.checkpoint", device=loaded.spec.device, reporter=report,
        )  # fmt: skip
    if as_json:
        print_json({"path": out, **card})
        return
    print(
        f"{out}: FVU {card['fvu']:.3f} ({card['fvu_all']:.3f} with massive tokens), L0 {card['l0']:.1f}, "
        f"dead {card['dead']:.1%}, {card['tokens_seen']:,} tokens seen of {card['tokens_unique']:,}"
    )
