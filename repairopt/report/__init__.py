"""What was done and what came of it: report, repair, page, pictures."""

from .as_patch import claims_from_report, record_repair
from .comparison_page import render_comparison, shown_letters
from .frontier_page import render_frontier
from .pictures.collect import ReportSources
from .pictures.drawing_library import load_matplotlib
from .pictures.evidence import RegionMap
from .pictures.plots import picture_bytes
from .pictures.region_maps import map_region, plot_region_map
from .plain_words import list_warnings
from .repair import Repair, write_html
from .report import Report, Trust, Verdict
