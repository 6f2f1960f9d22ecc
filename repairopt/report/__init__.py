"""What was done and what came of it: report, repair, page, pictures."""

from .as_patch import claims_from_report, record_repair
from .html_file import write_html
from .pictures.collect import ReportSources
from .repair import Repair
from .report import Report, Trust, Verdict
