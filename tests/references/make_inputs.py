"""The inputs on which the reference numbers of `make.R` rest: python make_inputs.py FOLDER, once.

Two designs of pairs (crossed: targets and sources are different features; shared: one feature may be both,
as numbers are equal), one list of p values with ties, one square matrix with node effects.
"""

import csv
import sys
from pathlib import Path

import numpy as np


def designs(rng):
    for case, n_targets, n_sources, per_target, offset in (
        ("crossed", 14, 17, 5, 1000),
        ("shared", 16, 16, 4, 0),
    ):
        effects = rng.standard_normal((2, 2000))
        for target in range(n_targets):
            allowed = [s for s in range(n_sources) if s + offset != target]
            for source in rng.permutation(allowed)[:per_target]:
                x, z = rng.standard_normal(2)
                y = 0.5 * x + effects[0, target] + effects[1, source + offset] + rng.standard_normal()
                yield case, target, int(source) + offset, x, z, y


def main(folder):
    rng = np.random.default_rng(20240601)

    def write(name, header, rows):
        with (folder / name).open("w", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(header)
            out.writerows([[repr(v) if isinstance(v, float) else v for v in map(_plain, r)] for r in rows])

    write("inputs.csv", ("case", "target", "source", "x", "z", "y"), designs(rng))
    p = np.concatenate([10 ** rng.uniform(-9, 0, 40), [0.01, 0.01, 0.5, 1.0, 0.0]])
    write("p.csv", ("p",), ([v] for v in p))
    n = 14
    node = rng.standard_normal((4, n))
    x = rng.standard_normal((n, n)) + node[0][:, None] + node[1]
    z = rng.standard_normal((n, n)) + 0.4 * x
    y = 0.1 * x + rng.standard_normal((n, n)) + node[2][:, None] + node[3]
    cells = [(i, j) for i in range(n) for j in range(n) if i != j]
    write(
        "matrix.csv", ("i", "j", "x", "z", "y"), ((i + 1, j + 1, x[i, j], z[i, j], y[i, j]) for i, j in cells)
    )


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
