"""GT6: two models that share a known part of their interference, and the estimate of that part.

python examples/transfer.py [--quick]
"""

import argparse

from polysem.selftest.transfer import estimate_share
from polysem.worlds.transfer import transfer_world


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    for phi in (0.5,) if options.quick else (0.0, 0.25, 0.5, 0.75, 1.0):
        found = estimate_share(transfer_world(phi=phi))
        print(f"phi {phi:g}: estimated {found.estimate:.2f} ({found.lo:.2f} to {found.hi:.2f})")


if __name__ == "__main__":
    main()
