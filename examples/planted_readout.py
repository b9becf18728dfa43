"""GT3: a planted readout LM through the whole pipeline, and the compensation that the estimate finds.

python examples/planted_readout.py [--quick]
"""

import argparse

from polysem.selftest.readout import within_sources
from polysem.selftest.studies import study_of
from polysem.worlds.readout import readout_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    for compensation in (0.0, 0.5, 1.0):
        world = readout_world(compensation=compensation)
        made = study_of(
            world.parts,
            seed=0,
            n_targets=10 if options.quick else 60,
            sources_per_bin=6,
            doses=(0.05,),
            n_random=1,
            response=True,
        )
        rows = made.pair_effects()
        kappa = world.truth.kappa[rows["target"]]
        fit = within_sources(rows, rows["dose"] * kappa * rows["interference"])
        index = max(made.response["compensation"].to_pylist(), key=lambda row: row["n_pairs"])
        raw = made.effect("slope_interference")
        print(
            f"lambda {compensation:g}: slope on centred interference {fit.estimate[0]:+.3f} "
            f"(true {1 - compensation:g}); index {index['estimate']:.3f} ({index['lo']:.3f} to {index['hi']:.3f}); raw slope {raw['estimate']:+.3f} nats per cosine, p = {raw['p']:.2g}"
        )


if __name__ == "__main__":
    main()
