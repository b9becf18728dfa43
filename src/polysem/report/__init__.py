"""One self-contained HTML file per run, from its tables and manifests alone."""

from polysem.report.page import write_report
from polysem.report.source import open_run

__all__ = ["open_run", "write_report"]
