"""GT5: dictionaries learnt on sparse codes; how many features and how many pairs of features they recover.

python examples/sparse_codes.py [--quick] [--with-sae-lens]
"""

import argparse

from polysem.worlds import codes, training


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--with-sae-lens", action="store_true", help="also the architectures that sae-lens trains"
    )
    options = parser.parse_args(argv)
    world = codes.codes_world(n_features=64, d=32, n_pairs=12)
    chosen = {"group_bias": 0.0} | ({"topk_auxk": 4, "relu_l1": 0.3} if options.with_sae_lens else {})
    for architecture, sparsity in chosen.items():
        steps = 100 if options.quick else 2000
        sae = training.train_sae(world, architecture, d_sae=96, steps=steps, sparsity=sparsity)
        found = codes.recovery(world.truth, sae.W_dec.double().numpy())
        print(
            f"{architecture}: MCC {found.mcc:.3f}, {found.matched:.0%} of features; of its close pairs "
            f"{found.precision:.0%} are close in truth, {found.recall:.0%} of the true ones are there"
        )


if __name__ == "__main__":
    main()
