"""One self-contained HTML file per run, from its tables and manifests alone."""

from polysem.report.write import write_report

__all__ = ["write_report"]
