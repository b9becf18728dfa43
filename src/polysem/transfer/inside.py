"""The part of a run that needs a target's inside: directions, and what injections cost on ordinary text."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from polysem.progress import Reporter
from polysem.store.tables import TRANSFER_COST, TRANSFER_DIRECTIONS, TRANSFER_STEERED
from polysem.targets import LocalTarget, Target
from polysem.transfer.capability import load_items
from polysem.transfer.cost import direction_cost, held_out, prompt_cost
from polysem.transfer.directions import WhiteBox, direction_rows, open_white_box, steered_table
from polysem.transfer.prepare import PreparedTransfer

Say = Callable[[str], None]


def open_inside(
    prepared: PreparedTransfer, targets: Mapping[str, Target], reporter: Reporter, say: Say
) -> tuple[list[str], dict[str, WhiteBox]]:
    """Held-out texts, and the insides of targets that have an SAE."""
    local = {c.name: (c, t) for c in prepared.study.targets if isinstance(t := targets[c.name], LocalTarget)}
    if not local:
        return [], {}
    texts = held_out(prepared)
    if prepared.study.cost.choices:
        load_items(Path(prepared.study.cost.choices))
    boxes = {}
    for name, (config, target) in local.items():
        if config.sae is not None:
            boxes[name] = open_white_box(prepared, config, target, reporter=reporter)
            refused = sum(sum(d.refused.values()) for d in boxes[name].directions)
            n = len(boxes[name].triples.feature)
            say(f"{name}: {n} features are matched to both sources; {refused} directions refused")
    return texts, boxes


def inside_tables(
    prepared: PreparedTransfer,
    targets: Mapping[str, Target],
    texts: list[str],
    boxes: Mapping[str, WhiteBox],
    folder: Path,
    reporter: Reporter,
) -> dict[str, pa.Table]:
    """What needs a target's inside: directions, and what injections cost on ordinary text."""
    steered, moved, cost = [], [], []
    for name, target in targets.items():
        if not isinstance(target, LocalTarget):
            continue
        with reporter.stage(f"inside {name}"):
            cost += prompt_cost(prepared, target, name=name, texts=texts, reporter=reporter)
            box = boxes.get(name)
            if box is None:
                continue
            steered.append(steered_table(prepared, box, folder=folder / "trials", reporter=reporter))
            moved += direction_rows(prepared, box, steered[-1])
            cost += direction_cost(prepared, box, steered[-1], texts=texts, reporter=reporter)
    return {
        "transfer_steered": TRANSFER_STEERED.conform(pa.concat_tables([TRANSFER_STEERED.empty(), *steered])),
        "transfer_directions": TRANSFER_DIRECTIONS.of_rows(moved),
        "transfer_cost": TRANSFER_COST.of_rows(cost),
    }
