# %% [markdown]
# # A report that a manager can read
#
# The first repair of the README, as one HTML page with pictures: verdict, caveats, table of claims, metrics by group,
# pictures, most affected inputs. Then the same page from a folder, without model and data, and single pictures.
# Needs Matplotlib (`pip install repairopt[report]`); no network access, some seconds.

# %%
from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; a network this small gains nothing from more

from repairopt import GroupGap, KeepLabels, Repair, solve_repair
from repairopt.compare.tasks import loan_decisions
from repairopt.report.pictures.evidence import save_evidence
from repairopt.report.pictures.plots import picture_bytes
from repairopt.report.repair import write_html

FEATURES = ["income", "savings", "age", "years at address", "household", "group"]


def repaired() -> Repair:
    """The gap between two groups, closed."""
    model, x, y = loan_decisions()
    gap = GroupGap.observed(x[:2000], column=5, target=0.05)
    keep = KeepLabels(x[:2000], y[:2000], tolerance=0.05)
    return solve_repair(model, gap, [keep], held_out=(x[2000:], y[2000:]))


# %% [markdown]
# ## The page, now and later
#
# `save_html` runs both networks over the data once more, to see which samples crossed. What the pictures show goes into
# `evidence.npz`, some hundred kilobytes; with `result.json` beside it the page is written anew without networks.


# %%
def write_pages(repair: Repair, folder: Path) -> tuple[Path, Path]:
    """The page from memory, and the same from a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    page = repair.save_html(folder / "report.html", features=FEATURES)
    save_evidence(repair.report.evidence, folder)
    (folder / "result.json").write_text(json.dumps(repair.report.to_dict()), encoding="utf-8")
    return page, write_html(folder, folder / "again.html", features=FEATURES)


# %% [markdown]
# ## One picture at a time
#
# `report.plot_groups()`, `plot_margins()`, `plot_slack()`, `plot_weights()`, `plot_convergence()`, `plot_inputs()` and
# `plot_frontier(points)` return Matplotlib figures, which notebooks show. Here three of them side by side.


# %%
def write_picture(repair: Repair, path: Path) -> None:
    """Groups, samples and progress in one PNG."""
    from PIL import Image

    report = repair.report
    figures = (report.plot_groups(held_out=True), report.plot_margins(held_out=True), report.plot_convergence())
    parts = [Image.open(io.BytesIO(picture_bytes(figure, "png", dpi=100))).convert("RGB") for figure in figures]
    sheet = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)), "white")
    for k, part in enumerate(parts):
        sheet.paste(part, (sum(other.width for other in parts[:k]), 0))
    sheet.quantize(128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report of a repair as an HTML page.")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "repairopt-report"))
    parser.add_argument("--picture", help="write the picture of the README to this PNG file too")
    options = parser.parse_args()
    repair = repaired()
    page, again = write_pages(repair, Path(options.folder))
    print(f"{page}: {page.stat().st_size:,} bytes; the same from the folder: {page.read_bytes() == again.read_bytes()}")
    if options.picture:
        write_picture(repair, Path(options.picture))


if __name__ == "__main__":
    main()
