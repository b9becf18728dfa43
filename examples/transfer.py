"""GT6: two models that share a known part of their interference, and the estimate of that part.

python examples/transfer.py [--quick]
"""

import argparse

from polysem.selftest.transfer import shared_pairs
from polysem.worlds.transfer import transfer_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    for phi in (0.5,) if options.quick else (0.0, 0.25, 0.5, 0.75, 1.0):
        matching, found = shared_pairs(transfer_world(phi=phi))
        print(
            f"phi {phi:g}: {matching.m} features matched, share of pairs in common {found.fraction:.2f} "
            f"({found.lo:.2f} to {found.hi:.2f}), {found.lift:.0f} times as many as by chance"
        )


if __name__ == "__main__":
    main()
