"""GT0: what must hold in any model, on tiny models of every family.

python examples/identities.py [--quick]
"""

import argparse

from polysem.selftest import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.parse_args(argv)
    for line in run(worlds=["GT0"]).lines:
        print(
            f"{'holds' if line.held else 'BROKEN'}  {line.name}: {line.value:.3g} (expected {line.expected})"
        )


if __name__ == "__main__":
    main()
