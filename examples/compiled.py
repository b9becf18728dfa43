"""GT4: a circuit as weights, squeezed more and more: how much interference its features get.

python examples/compiled.py [--quick]
"""

import argparse

import numpy as np

from polysem.worlds.compiled import compiled_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    for compression in (None, 0.5) if options.quick else (None, 0.9, 0.7, 0.5, 0.3):
        world = compiled_world(compression=compression)
        off = world.truth.gram[np.triu_indices(len(world.truth.gram), 1)]
        width = world.model.spec.d_model
        print(
            f"{len(world.truth.gram)} features in {width} dimensions: rms cosine {np.sqrt((off**2).mean()):.3f}, ",
            end="",
        )
        print(f"{int((np.abs(off) >= 0.2).sum())} pairs at 0.2 or more")


if __name__ == "__main__":
    main()
