"""GT2: neurons shared by accident, counted and found by switching neurons off.

python examples/incidental.py [--quick]
"""

import argparse

from polysem.worlds.incidental import train_incidental


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    seeds = 3 if options.quick else 20
    for n, m in ((16, 64), (32, 64)) if options.quick else ((16, 64), (32, 64), (64, 64), (32, 128)):
        trained = train_incidental(n=n, m=m, seeds=seeds)
        meetings = n * (n - 1) / 2 / m
        print(
            f"{n} features, {m} neurons: {trained.shared.sum() / seeds:.2f} shared neurons a model, "
            f"{meetings:.2f} pairs would meet by chance"
        )


if __name__ == "__main__":
    main()
