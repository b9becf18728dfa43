"""GT1: toy models of superposition. Trains a pentagon and a phase diagram, steers a feature, draws pictures.

python examples/toy_models.py [--quick] [--out FOLDER]
"""

import argparse
from pathlib import Path

import numpy as np

from polysem.report import worlds as pictures
from polysem.worlds import toy


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/toy_models"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)

    steps = 300 if options.quick else 4000
    pentagon = toy.train_toys(n=5, m=2, p=np.full(4, 0.05), steps=steps, batch=512)
    best = int(pentagon.loss.argmin())
    print("dimensions that each of 5 features has:", toy.dimensionality(pentagon.W[best]).round(3))
    drawn = pictures.arrangement(pentagon.W[best], title="Five features in two dimensions")
    (options.out / "pentagon.svg").write_text(str(drawn))

    n_p, n_i = (5, 3) if options.quick else (18, 10)
    importance, p = (a.ravel() for a in np.meshgrid(np.linspace(0.1, 1, n_i), np.linspace(0.05, 0.9, n_p)))
    found = toy.train_phases(
        p, importance, restarts=3 if options.quick else 10, steps=100 if options.quick else 500
    )
    shared = np.abs(found.best).min(axis=1) > 0.2
    line = [(toy.boundary(float(i)), float(i)) for i in np.linspace(0.1, 1, 50)]
    drawn = pictures.phase_diagram(importance, p, shared, boundary=line)
    (options.out / "phases.svg").write_text(str(drawn))
    print(f"{shared.sum()} of {len(shared)} cells share their dimension")

    chance = np.array([0.9, 0.3, 0.1, 0.03, 0.01])
    steps = 100 if options.quick else 3000
    toys = toy.train_toys(n=20, m=5, p=chance, importance=0.9 ** np.arange(20), steps=steps, batch=256)
    points = [
        (float((W**2).sum() / 5), toy.vulnerability(W, b), f"p = {q:g}")
        for q, W, b in zip(chance, toys.W, toys.b, strict=True)
    ]
    drawn = pictures.curve(
        points,
        x_label="features per dimension",
        y_label="change of an output, of the attack's length",
        title="Superposition and small attacks",
    )
    (options.out / "vulnerability.svg").write_text(str(drawn))
    for features, reach, name in points:
        print(
            f"{name}: {features:.2f} features per dimension, an attack of length 1 moves an output by {reach:.2f}"
        )


if __name__ == "__main__":
    main()
