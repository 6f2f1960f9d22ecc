# %% [markdown]
# # Watch a repair in an experiment tracker
#
# `progress=` of `solve_repair` is called after each round; `track_rounds` makes such a function of anything that logs
# metrics by name and step. Shown here with a plain list, with TensorBoard and with MLflow. Neither of the two is needed
# by repairopt; what is not installed is skipped, and said so. No network access, a few seconds.

# %%
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded; a network this small gains nothing from more

from repairopt import GroupGap, KeepLabels, Repair, Settings, solve_repair
from repairopt.compare.tasks import loan_decisions
from repairopt.interfaces.track import Log, report_metrics, track_rounds


def repaired(log: Log) -> Repair:
    """A small repair whose rounds are logged."""
    model, x, y = loan_decisions()
    gap = GroupGap.observed(x[:2000], column=5, target=0.05)
    keep = KeepLabels(x[:2000], y[:2000], tolerance=0.05)
    held_out = (x[2000:], y[2000:])
    return solve_repair(
        model, gap, [keep], held_out=held_out, method="sequential", settings=Settings(progress=track_rounds(log))
    )


# %% [markdown]
# ## Anything that can be called


# %%
def to_list() -> dict[str, object]:
    """Rounds in a list; for a tracker of your own this is where its call goes."""
    rounds: list[tuple[int, dict[str, float]]] = []
    repair = repaired(lambda metrics, step: rounds.append((step, metrics)))
    return {"rounds": len(rounds), "metrics": report_metrics(repair.report)}


# %% [markdown]
# ## TensorBoard
#
# `pip install tensorboard`, then `tensorboard --logdir FOLDER`.


# %%
def to_tensorboard(folder: Path) -> dict[str, object]:
    """Scalars for each round, and the report's figures and page at the end."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def log(metrics: dict[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        repair = repaired(log)
        for name, value in report_metrics(repair.report, "report").items():
            writer.add_scalar(name, value)
        writer.add_text("report", f"```\n{repair.report}\n```")
    return {"files": len(list(folder.glob("events.*"))), "rounds": len(repair.report.rounds)}


# %% [markdown]
# ## MLflow
#
# `pip install mlflow`, or `mlflow-skinny` without its server. `mlflow.log_metrics` is passed as it is.


# %%
def to_mlflow(folder: Path) -> dict[str, object]:
    """A run in a folder, with the figures of the report as metrics of their own."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder does for an example; servers have a database
    import mlflow

    mlflow.set_tracking_uri((folder / "runs").resolve().as_uri())
    with mlflow.start_run():
        repair = repaired(mlflow.log_metrics)
        mlflow.log_metrics(report_metrics(repair.report, "report"))
        mlflow.log_params({"method": repair.report.method, "seed": repair.report.seed})
    return {"files": len(list(folder.rglob("metrics/*"))), "rounds": len(repair.report.rounds)}


# %%
def main() -> None:
    parser = argparse.ArgumentParser(description="Log a repair to trackers.")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where TensorBoard and MLflow write")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found: dict[str, object] = {"list": to_list()}
    for name, run in (("tensorboard", to_tensorboard), ("mlflow", to_mlflow)):
        folder = Path(options.folder) / f"repairopt-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        found[name] = run(folder) if importlib.util.find_spec(name) else "skipped: not installed"
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
