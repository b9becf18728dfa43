"""Neurons one by one: does a neuron's degree say what becomes of the model without it?

Some neurons of every bin of degree (arXiv 2505.11611, section 3.6) are masked (set to 0), ablated (set to their mean over
the study's prompts) and amplified (doubled), whatever else the study does with neurons; and as many directions of a
basis rotated at random, with the degrees that they have there. What is read is the feature that writes most along the
neuron. Rows of the plan have a dose unit of their own (`neuron_factor`), by which they are told from all others.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import Recipe, intervention
from polysem.geometry.unit import unit_rows
from polysem.plan.blocks import LocusBlock
from polysem.plan.degrees import bin_of
from polysem.saes.base import decoder_rows
from polysem.seeds import random_rotation, rng_for

UNIT = "neuron_factor"
DOSES = (-1.0, 1.0)


def neuron_blocks(request: ArmsRequest, neurons: pa.Table) -> list[LocusBlock]:
    """The blocks of one SAE: one per locus of neurons, none empty.

    Args:
        request: features, number of neurons per bin and seed; `writes` by locus.
        neurons: NEURONS of the SAE.
    """
    made: list[LocusBlock] = []
    for locus, writes in request.writes.items():
        kind = intervention(locus).neurons
        arms: list[Arm] = []
        for basis in (0, 1):
            here = neurons.filter(
                pc.and_(pc.equal(neurons["kind"], kind), pc.equal(neurons["basis"], basis))
            ).sort_by("neuron")
            if here.num_rows:
                arms += _arms(request, locus, here, writes, basis)
        if arms:
            made.append(LocusBlock(locus, arms, DOSES, UNIT, request.plan.positions))
    return made


def _arms(request: ArmsRequest, locus: str, neurons: pa.Table, writes: np.ndarray, basis: int) -> list[Arm]:
    """Two arms for each drawn neuron: about 0 (masked, amplified) and about its mean (ablated)."""
    index, kind = request.index, neurons["kind"][0].as_py()
    moves = neurons["variance"].to_numpy() > 0
    bins = np.array([bin_of(d) for d in neurons["degree"].to_pylist()])
    if basis:
        rotation = random_rotation(len(writes), rng_for(request.seed, "degrees", index.label, kind, 0))
        writes = rotation.T @ writes
    rows = decoder_rows(index.sae)
    usable = index.usable & np.array([bool(t) for t in index.tokens_in])
    features = np.flatnonzero(usable)
    unit = unit_rows(rows[features])
    found: list[Arm] = []
    for k in np.unique(bins):
        inside = np.flatnonzero((bins == k) & moves)
        rng = rng_for(request.seed, "neurons by degree", index.label, locus, basis, int(k))
        drawn = rng.choice(inside, min(request.plan.neurons_per_bin, len(inside)), replace=False)
        for n in sorted(drawn.tolist()):
            cosine = unit @ writes[n] / max(float(np.linalg.norm(writes[n])), 1e-300)
            best = int(cosine.argmax())
            given = {"neuron": n, "seed": request.seed} if basis else {"neuron": n}
            named = "turned" if basis else locus
            centre = float(neurons["mean"][n].as_py())
            for draw, about in ((2 * n, {}), (2 * n + 1, {"centre": centre})):
                recipe = Recipe.of(named, **given, **about).text
                relation = "turned_neuron" if basis else "single_neuron"
                source = None if basis else index.sae.d_sae + n
                at = (int(features[best]), source, draw, recipe, int(k), float(cosine[best]), None)
                found.append(Arm(relation, *at))
    return found
