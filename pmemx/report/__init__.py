"""Reports: from the records of a finished run to one self-contained page, a Markdown file and its figures."""

from pmemx.report.write import write_report

__all__ = ["write_report"]
