"""Benchmarks: `make bench`, or `python -m benchmarks --help`. Method and figures: docs/performance.md."""
