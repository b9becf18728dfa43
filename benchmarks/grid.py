"""A study in the shape of the paper's grid: planned, costed, and one SAE's share of it run for real.

    python -m benchmarks.grid --shape Pythia-70M --folder GRID/pythia       18 SAEs
    python -m benchmarks.grid --shape GPT-2 --folder GRID/gpt2              48 SAEs

Random weights stand in for the models; the SAEs of a model share one random dictionary of 32,768 features, of
which some thousand pairs interfere. Per SAE, as in arXiv 2505.11611: 10 targets, one interfering feature per
bin and two controls for each, 15 prompts of 12 tokens, 16 doses of both signs. The folder is kept, so that a
second call goes on where the first one ended. Results go where those of `make bench` go.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from benchmarks.harness import Point, require

# isort: split
import numpy as np
import pyarrow.compute as pc
import torch
from tests.support.sae_fixtures import Weights, write_saelens_v6

from benchmarks.worlds import Shape, config
from polysem.config import parse_study
from polysem.engine import run_study
from polysem.engine.context import StudyContext
from polysem.engine.cost import estimate_cost
from polysem.store.run import RunFolder, trial_parts
from polysem.store.tables import TRIALS
from polysem.trials import run_batches
from polysem.worlds.tiny import tiny_tokenizer

torch.set_num_threads(1)

POINTS: dict[Shape, tuple[str, ...]] = {
    "Pythia-70M": ("hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    "GPT-2": ("hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
}
"""the sites of each block that have an SAE"""
D_SAE = 32_768
TOPICS = 4096
"""directions that rows share, and texts that glosses share"""
STUDY = """\
name = "grid"
[model]
ref = "{folder}/model"
device = "cpu"
[corpus]
ref = "{folder}/text.txt"
n_tokens = {n_tokens}
context = 64
[features]
n_contexts = 2
[glosses]
source = "file:{folder}/glosses.jsonl"
cluster_cuts = [0.9]
[prompts]
source = "file:{folder}/prompts.txt"
[plan]
n_targets = {n_targets}
sources_per_bin = 1
n_random = 1
doses = [{doses}]
dose_unit = "resid_norm"
positions = "all"
"""
ENTRY = """
[[saes]]
ref = "{folder}/{name}"
label = "{name}"
max_fvu = 1e9
allow_other_model = true
"""


def write_study(
    folder: Path,
    shape: Shape,
    *,
    d_sae: int = D_SAE,
    n_saes: int = 0,
    n_targets: int = 10,
    n_prompts: int = 15,
    n_topics: int = TOPICS,
) -> Path:
    """Everything that a study needs; gives its file. All SAEs of the grid, or `n_saes` of
    them, evenly spread."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    kind, parts = config(shape)
    network, tokenizer = kind(parts).eval(), tiny_tokenizer()
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    width, depth = parts.hidden_size, parts.num_hidden_layers
    weights = dictionary(d_sae, width, n_topics)
    sites = [(layer, point) for layer in range(depth) for point in POINTS[shape]]
    names = []
    for layer, point in sites[:: len(sites) // (n_saes or len(sites))][: n_saes or None]:
        names.append(f"{layer:02d}-{point.removeprefix('hook_')}")
        write_saelens_v6(
            folder / names[-1],
            Weights(**{**vars(weights), "layer": layer, "hook": point}),
            architecture="topk",
        )
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return tokenizer.decode(rng.integers(4, len(tokenizer), length).tolist())

    (folder / "text.txt").write_text("\n\n".join(text(60) for _ in range(400)), encoding="utf-8")
    # as long as twelve tokens, BOS included
    prompts = [text(11) for _ in range(n_prompts)]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    glosses = rng.integers(0, n_topics, d_sae)
    rows = [json.dumps({"feature": k, "description": _gloss(int(g))}) for k, g in enumerate(glosses)]
    (folder / "glosses.jsonl").write_text("\n".join(rows), encoding="utf-8")
    doses = ", ".join(f"{dose:.6g}" for dose in np.geomspace(0.01, 1, 16))
    study = STUDY.format(folder=folder.resolve(), doses=doses, n_targets=n_targets, n_tokens=4096)
    study += "".join(ENTRY.format(folder=folder.resolve(), name=name) for name in names)
    (folder / "study.toml").write_text(study, encoding="utf-8")
    return folder / "study.toml"


def dictionary(d_sae: int, d_in: int, n_topics: int) -> Weights:
    """Tied rows that share topic directions, so that some pairs interfere in every bin."""
    rng = torch.Generator().manual_seed(0)

    def unit(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, d_in, generator=rng), dim=1)

    share = torch.rand(d_sae, 1, generator=rng) * 0.6
    topic = unit(n_topics)[torch.randint(0, n_topics, (d_sae,), generator=rng)]
    rows = torch.nn.functional.normalize((1 - share).sqrt() * unit(d_sae) + share.sqrt() * topic, dim=1)
    none = torch.zeros(d_sae)
    return Weights(
        W_enc=rows.T.contiguous(), W_dec=rows, b_enc=none, b_dec=torch.zeros(d_in), threshold=none,
        r_mag=none, b_mag=none, b_gate=none, k=32,
    )  # fmt: skip


def _gloss(topic: int) -> str:
    words = "river street harbour judge verdict oath mast sail storm rose ivy violin drum bishop azure mother"
    chosen = np.random.default_rng(topic).choice(words.split(), 3, replace=False)
    return f"{' '.join(chosen)} {topic}"


def run(folder: Path, shape: Shape, *, n_saes: int = 0) -> Iterator[Point]:
    """Plan and cost the grid, or some SAEs of it, then run the share of the one in the middle; one thread."""
    study, out = folder / "study.toml", folder / "run"
    if not study.exists():
        write_study(folder, shape, n_saes=n_saes)
    started, record = time.process_time(), folder / "planning.json"
    run_study(study, out, stages=["features", "pairs", "plan"])
    # a folder may have been gone on with: what earlier calls spent counts
    planning = time.process_time() - started + (json.loads(record.read_text()) if record.exists() else 0.0)
    record.write_text(json.dumps(planning))
    cost = estimate_cost(out)
    folder_now = RunFolder(out)
    plan, prompts = folder_now.table("plan"), folder_now.table("prompts")
    bench = StudyContext(parse_study(study.read_text()), folder_now)
    share = sorted(cost.by_sae)[len(cost.by_sae) // 2]
    mine = plan.filter(pc.equal(plan["sae"], share))
    of_share = set(mine["batch"].to_pylist())
    parts = [[batch for batch in part if batch in of_share] for part in trial_parts(plan)]
    args = (plan, prompts, bench.features, bench.model, bench.saes)
    run_batches(*args, batches=sorted(of_share)[:1])  # loads
    started, n_rows = time.process_time(), 0
    for part in filter(None, parts):  # as the stage runs them
        n_rows += TRIALS.conform(run_batches(*args, batches=part)).num_rows
    spent = time.process_time() - started
    require(n_rows == mine.num_rows, f"{n_rows} trials were run, {mine.num_rows} were planned")
    estimate = cost.by_sae[share]
    values = {
        "trials": plan.num_rows,
        "rows": cost.rows,
        "features, pairs and plan, repeats included, cpu s": planning,
        "estimate of all trials, cpu h": cost.cpu_seconds / 3600,
        "estimate of one SAE's share, cpu s": estimate,
        "the share run, cpu s": spent,
        "run / estimate": spent / estimate,
        "rows a cpu s": cost.rows / cost.cpu_seconds,
    }
    yield Point(f"A grid in the paper's shape, {shape}, share of {share}", "SAEs", len(cost.by_sae), values)


def main() -> int:
    from benchmarks.__main__ import keep, write_document

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=get_args(Shape), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--saes", type=int, default=0, help="so many of them, evenly spread; default: all")
    args = parser.parse_args()
    rows = [
        {"kind": "point", "benchmark": f"grid.{args.shape}", **vars(point)}
        for point in run(args.folder, args.shape, n_saes=args.saes)
    ]
    for row in rows:
        print(json.dumps(row))
    keep({f"grid.{args.shape}": rows})
    write_document()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
