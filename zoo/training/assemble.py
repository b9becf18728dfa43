"""Copy what was trained into the package: models, autoencoders, transcoders, feature tables, text, card. Refuses a zoo
over its size budget.

python assemble.py --work WORK
"""

import argparse
import shutil
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "polysem_zoo"
BUDGET_MB = 72


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    for kind in ("models", "saes", "transcoders", "features"):
        shutil.rmtree(PACKAGE / kind, ignore_errors=True)
        ignored = shutil.ignore_patterns("training.json", "*.partial")
        shutil.copytree(work / kind, PACKAGE / kind, ignore=ignored)
    (PACKAGE / "texts").mkdir(exist_ok=True)
    shutil.copy(work / "samples.txt", PACKAGE / "texts" / "samples.txt")
    for name in ("CARD.md", "card.json"):
        if (work / name).exists():
            shutil.copy(work / name, PACKAGE / name)
    size = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.is_file()) / 1e6
    print(f"{size:.1f} MB in {PACKAGE}")
    if size > BUDGET_MB:
        raise SystemExit(f"the zoo takes {size:.1f} MB, more than its {BUDGET_MB}")


if __name__ == "__main__":
    main()
