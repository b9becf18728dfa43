"""Runs the benchmarks, prints the table, and writes docs/performance.md.

    python -m benchmarks                      everything, at full size
    python -m benchmarks --only mining        one module, or mining.pairs: one benchmark
    python -m benchmarks --quick              small inputs: does everything run?
    python -m benchmarks --json               one JSON object a line
    python -m benchmarks --docs               write docs/performance.md from the results kept, run nothing

Every benchmark runs in a process of its own. Results at full size are kept in benchmarks/results.json, where
a new run of a benchmark takes the place of its old one; the document is made from that file. Exit code 1 if a
check fails or a line stays below its must.
"""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import REGISTRY, CheckFailed, Line, PeerMissing, Point

ROOT = Path(__file__).parent
RESULTS = ROOT / "results.json"
DOCUMENT = ROOT.parent / "docs" / "performance.md"
MODULES = (
    "mining",
    "sweep",
    "gradients",
    "harvest",
    "atlas",
    "steering",
    "glosses",
    "startup",
    "workers",
    "kernels",
    "planning",
    "study",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return _run_here(args.one, quick=args.quick)
    names = _chosen(args.only)
    if args.list:
        print("\n".join(names))
        return 0
    if args.docs:
        write_document()
        return 0
    failed = False
    for name in names:
        rows = _run_apart(name, quick=args.quick)
        for row in rows:
            print(json.dumps(row) if args.json else _shown(row, quick=args.quick), flush=True)
            failed |= row["kind"] == "failure" or (row.get("verdict") == "below" and not args.quick)
        if not args.quick:
            keep({name: rows})
    if not args.quick:
        write_document()
    return int(failed)


def _chosen(only: list[str]) -> list[str]:
    for module in MODULES:
        importlib.import_module(f"benchmarks.{module}")
    names = [n for n in REGISTRY if not only or any(n == o or n.startswith(f"{o}.") for o in only)]
    if not names:
        raise SystemExit(f"no benchmark {only}; there are {sorted(REGISTRY)}")
    return names


def _run_apart(name: str, *, quick: bool) -> list[dict[str, Any]]:
    """The rows of one benchmark, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--one", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind"')]
    if done.returncode:
        rows.append({"kind": "failure", "benchmark": name, "reason": done.stderr[-1500:].strip()})
    return rows


def _run_here(name: str, *, quick: bool) -> int:
    importlib.import_module(f"benchmarks.{name.partition('.')[0]}")
    try:
        for row in REGISTRY[name].run("quick" if quick else "full"):
            print(json.dumps({"kind": type(row).__name__.lower(), "benchmark": name, **_plain(row)}))
            sys.stdout.flush()
    except PeerMissing as missing:
        print(json.dumps({"kind": "skipped", "benchmark": name, "reason": str(missing)}))
    except CheckFailed as failure:
        print(json.dumps({"kind": "failure", "benchmark": name, "reason": str(failure)}))
    return 0


def _plain(row: Line | Point) -> dict[str, Any]:
    more = (
        {"ratio": row.ratio, "verdict": row.verdict, "possible": row.possible}
        if isinstance(row, Line)
        else {}
    )
    return asdict(row) | more


def _shown(row: dict[str, Any], *, quick: bool) -> str:
    match row["kind"]:
        case "line":
            bar = "small input" if quick else f"must {row['must']}, aim {row['aim']}: {row['verdict']}"
            figures = f"ours {row['ours']:.4g}, other {row['other']:.4g} {row['unit']}"
            return f"{row['name']}, against {row['against']}: x{row['ratio']:.2f} ({bar}; {figures}; {row['check']})"
        case "point":
            values = ", ".join(f"{name} {value:.4g}" for name, value in row["values"].items())
            return f"{row['curve']}, {row['axis']} {row['at']}: {values}"
        case kind:
            return f"{kind.upper()} {row['benchmark']}: {row['reason']}"


def keep(found: dict[str, list[dict[str, Any]]]) -> None:
    kept = json.loads(RESULTS.read_text())["benchmarks"] if RESULTS.exists() else {}
    # A peer that is missing today does not erase what was measured with it.
    kept |= {n: rows for n, rows in found.items() if rows and rows[-1]["kind"] in ("line", "point")}
    whole = {"machine": machine(), "benchmarks": dict(sorted(kept.items()))}
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


def machine() -> str:
    """The processor and the library versions that figures depend on."""
    import os

    import torch

    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_document() -> None:
    from benchmarks.document import document

    DOCUMENT.write_text(document(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    raise SystemExit(main())
