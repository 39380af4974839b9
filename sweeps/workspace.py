"""The W&B workspace of a sweep, defined in code: its curves, and its trials side by side.

python sweeps/workspace.py ENTITY/PROJECT SWEEP_NAME            saves it and says where it is
python sweeps/workspace.py ENTITY/PROJECT SWEEP_NAME --print    shows what would be saved, as JSON; needs no network

The axes of the parallel coordinates are those in outputs/sweeps/SWEEP_NAME/sweep.yaml, or those given with --axes.
Needs the extra `dashboards`: pip install "dpo_lab[dashboards]".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

USUAL_AXES = ("optim.lr", "loss.beta", "lora.r")
CURVES = {
    "held-out accuracy": "val/rewards/accuracies",
    "held-out margin, nats": "val/logratios/margins",
    "KL(policy || reference)": "val/kl",
    "held-out loss": "val/loss",
    "training loss": "train/loss",
    "gradient norm": "train/grad_norm",
}
ON_A_LOG_SCALE = ("optim.lr", "loss.beta", "lora.r")


def build(entity: str, project: str, sweep: str, axes: Sequence[str]) -> "ws.Workspace":
    """The workspace.

    Args:
        entity: whose project it is.
        project: where the runs are.
        sweep: its name, which is the group of its runs.
        axes: the keys that the trials differ in.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    accuracy, kl = CURVES["held-out accuracy"], CURVES["KL(policy || reference)"]
    trials = [
        wr.ParallelCoordinatesPlot(title="Every trial", columns=[*map(_column, axes), _end(accuracy), _end(kl)]),
        wr.ScatterPlot(
            title="Accuracy against KL",
            x=wr.SummaryMetric(kl),
            y=wr.SummaryMetric(accuracy),
            regression=False,
        ),
        wr.ParameterImportancePlot(with_respect_to=accuracy),
        wr.BarPlot(title="Held-out accuracy", metrics=[wr.SummaryMetric(accuracy)], max_bars_to_show=50),
    ]
    curves = [wr.LinePlot(title=title, x="Step", y=[name], max_runs_to_show=50) for title, name in CURVES.items()]
    whole = [
        wr.LinePlot(
            title=f"{title}: mean and range",
            x="Step",
            y=[name],
            groupby="Group",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for title, name in CURVES.items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sweep {sweep}",
        sections=[
            ws.Section(name="Trials", panels=trials, is_open=True),
            ws.Section(name="Curves, a line a trial", panels=curves, is_open=True),
            ws.Section(name="Curves, the sweep as a whole", panels=whole, is_open=False),
        ],
        settings=ws.WorkspaceSettings(max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == sweep, expr.Metric("JobType") != "report"],
            order=[expr.Ordering(expr.Summary(accuracy), ascending=False)],
            pinned_columns=[*(f"config:{_below_value(axis)}" for axis in axes), f"summary:{accuracy}", f"summary:{kl}"],
        ),
        auto_generate_panels=False,
    )


def _column(axis: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.ParallelCoordinatesPlotColumn(
        metric=wr.Config(axis), display_name=axis, log=True if axis in ON_A_LOG_SCALE else None
    )


def _end(metric: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(metric), display_name=metric)


def _below_value(axis: str) -> str:
    """The column of a key of the config: optim.lr -> optim.value.lr."""
    group, dot, rest = axis.partition(".")
    return f"{group}.value{dot}{rest}"


def _axes(sweep: str) -> list[str]:
    """Those of the sweep's folder, seeds left out; the usual ones where there is none."""
    try:
        book = yaml.safe_load((Path("outputs/sweeps") / sweep / "sweep.yaml").read_text(encoding="utf-8"))
        axes = [key for key in book["axes"] if key not in ("seed", "data.seed")]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return [*USUAL_AXES]
    return axes or [*USUAL_AXES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Save the workspace, or show it."""
    parser = argparse.ArgumentParser(description="The W&B workspace of a sweep.")
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("sweep", metavar="SWEEP_NAME")
    parser.add_argument("--axes", help="keys that the trials differ in, e.g. optim.lr,loss.beta")
    parser.add_argument("--print", action="store_true", help="show it as JSON instead of saving it")
    given = parser.parse_args(arguments)
    entity, slash, project = given.project.partition("/")
    if not (entity and slash and project):
        parser.error(f"{given.project}: give the entity too, as ENTITY/PROJECT")
    axes = given.axes.split(",") if given.axes else _axes(given.sweep)
    try:
        workspace = build(entity, project, given.sweep, axes)
    except ImportError as e:
        parser.error(f'{e}. Install it with pip install "dpo_lab[dashboards]"')
    if given.print:
        sys.stdout.write(workspace._to_model().model_dump_json(indent=2, by_alias=True) + "\n")
        return
    workspace.save()
    sys.stdout.write(f"{workspace.url}\n")


if __name__ == "__main__":
    main()
