"""What choosing the strength on the reported prompts adds, and what the chosen strengths do to the model.

The mean relative change of one relation: at the best strength of each reported prompt (the paper's way), at the
strength that is best on the select prompts, there and on the confirm prompts. The differences are the optimism of
selection; directions that aim at nothing have it too. Beside it stands the mean KL at the strengths that the paper's
way picks: its grid has no guard of coherence.
"""

from collections.abc import Iterator

import numpy as np

from polysem.paper.grid import kl_at_best, means_by_arm
from polysem.paper.scene import Choices, Found, PaperScene, Row, Step, preset_row

PARTS = (
    ("best_per_prompt", "best strength of each reported prompt, all cases"),
    ("best_on_select", "best strength of each pair on the select prompts, its value there"),
    ("same_on_confirm", "the same strength on the confirm prompts"),
    ("optimism_per_prompt", "best_per_prompt minus same_on_confirm"),
    ("optimism_per_pair", "best_on_select minus same_on_confirm"),
    ("kl_of_best", "KL at the best strength of each reported prompt"),
)


def optimism(scene: PaperScene, relation: str) -> Iterator[Row]:
    """The rows of one relation, in the order of `PARTS`."""
    arms = scene.view.where(token_set=scene.token_set, relation=relation)
    free, n = Choices(cases="all", budget="equal"), len(arms)
    held = free._replace(selection="select")
    best, seen, later = (
        means_by_arm(cells, n)
        for cells in (scene.effects(free), scene.effects(held, on="select"), scene.effects(held))
    )
    spent = means_by_arm(kl_at_best(scene.searched, only_positive=scene.only_positive), n)
    columns = (best, seen, later, best - later, seen - later, spent)
    used = arms & np.isfinite(best) & np.isfinite(later) & np.isfinite(seen)
    for step, ((name, about), values) in enumerate(zip(PARTS, columns, strict=True)):
        unit = "nats" if name == "kl_of_best" else "relative change"
        known = used & np.isfinite(values)
        regression = scene.view.regress(values[known], np.ones((int(known.sum()), 1)), known)
        found = Found(regression, 0, known, int(known.sum()), about)
        key = {"question": "mean", "relation": relation, "outcome": "relative", "unit": unit}
        yield key | preset_row(scene, found, Step("optimism", step, name))
