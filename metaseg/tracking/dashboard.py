"""A saved report at Weights & Biases that lays out what runs log: `metaseg dashboard ENTITY/PROJECT`.

The panels stand in `sections` as data, so they can be read, and checked against what a run logs, without W&B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaseg.errors import MetasegError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Panel as WandbPanel
    from wandb_workspaces.reports.v2 import Report

TARGETS = ("isic", "kvasir", "kvasir_capsule")
"""The paper's target datasets."""
POOLS = ("ph2", "kvasir", "cvc", "isic")
"""Its source datasets."""
_WIDTH = 24  # of a W&B report, in its own units
_HEIGHT = {"lines": 8, "bars": 8, "pictures": 14, "table": 16}


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: "lines", "bars", "pictures" or "table".
        title: stands above it.
        keys: names of what runs log; those that no run has are left empty by W&B.
        x: axis of lines.
    """

    kind: str
    title: str
    keys: tuple[str, ...]
    x: str = ""


@dataclass(frozen=True)
class Section:
    """Panels under a heading, `columns` beside each other.

    Attributes:
        title: the heading.
        says: a sentence below it.
        panels: from left to right, row by row.
        columns: panels in a row.
        by_cell: whether runs that differ in their seed alone are one line: their mean, and a band from least to most.
    """

    title: str
    says: str
    panels: tuple[Panel, ...]
    columns: int = 2
    by_cell: bool = True


def sections(targets: Sequence[str] = TARGETS, pools: Sequence[str] = POOLS) -> tuple[Section, ...]:
    """The dashboard, from what is looked at first."""

    def lines(title: str, *keys: str, x: str = "trainer/global_step") -> Panel:
        return Panel("lines", title, keys, x)

    def of_target(target: str, *names: str) -> tuple[str, ...]:
        return tuple(f"test/{target}/{name}" for name in names)

    return (
        Section(
            "Results",
            "Dice on the targets, as fractions: after and before adaptation, training from scratch on the same support "
            "images, and the best trivial baseline. Seeds of a cell are averaged.",
            tuple(
                Panel("bars", f"Dice on {name}", of_target(name, "dsc", "dsc_before", "dsc_scratch", "dsc_trivial"))
                for name in targets
            ),
            columns=len(targets),
        ),
        Section(
            "Adaptation",
            "Dice on the targets over adaptation steps.",
            tuple(
                lines(name, f"adaptation/{name}/dsc", f"adaptation/{name}/dsc_scratch", x="adaptation/step")
                for name in targets
            ),
            columns=len(targets),
        ),
        Section(
            "Learning curves",
            "Training and validation; the gap between before and after is what the inner loop gains.",
            (
                lines("Validation loss", "validation/query_loss_before", "validation/query_loss_after", x="epoch"),
                lines("Validation Dice", "validation/dice_before", "validation/dice_after", x="epoch"),
                lines("Training loss of the query set", "train/query_loss_after"),
                lines("Training Dice of the query set", "train/query_dice_after"),
            ),
        ),
        Section(
            "Inner and outer loop",
            "Whether meta-gradients can be trusted. The residual says how well the linear system was solved, "
            "stationarity how far the inner loop was from its minimum (1: it did not move); at a curvature of I + C/λ "
            "below zero the solve ends early. iMAML has all of them.",
            (
                lines("Relative residual of conjugate gradient", "train/cg_residual"),
                lines("Stationarity of the inner loop", "train/stationarity"),
                lines("Inner steps taken", "train/inner_steps"),
                lines("Share of inner problems not solved, or not moved", "train/unsolved", "train/still"),
                lines("Norm of the meta-gradient", "train/gradient_norm"),
                lines("Smallest curvature met", "train/smallest_curvature"),
                lines("Curvature products a solve", "train/cg_iterations"),
                lines("Share of solves ended by negative curvature", "train/cg_negative_curvature"),
                lines("Support loss in the inner loop", "train/support_loss_before", "train/support_loss_after"),
            ),
        ),
        Section(
            "The same images over epochs",
            "Held-out images of the pair, before and after the inner loop: truth cyan, prediction yellow. The slider "
            "chooses the epoch.",
            tuple(Panel("pictures", name, (f"progress/{name}",)) for name in pools),
            by_cell=False,
        ),
        Section(
            "The targets",
            "Best, median and worst image after adaptation; below, the scores of every image and support draw.",
            (
                *(Panel("pictures", name, (f"overlays/{name}",)) for name in targets),
                Panel("table", "Scores by image", ("per_image",)),
            ),
            columns=1,
            by_cell=False,
        ),
    )


def build(entity: str, project: str, tables: Sequence[int] = (), title: str = "metaseg") -> Report:
    """The report, not saved yet; needs no network.

    Args:
        entity: the team or user that it belongs to.
        project: its project, whose runs it shows.
        tables: of the paper; runs of others are left out. Empty: all runs.
        title: of the report.

    Raises:
        MetasegError: if the package wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise MetasegError(
            f"A report needs the package wandb-workspaces ({error}): pip install 'metaseg-implicit[dashboard]', or lay "
            "the panels out by hand as docs/wandb.md lists them."
        ) from error
    tags = ", ".join(f"'table {number}'" for number in tables)
    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections():
        # Without entity and project, a set of runs is that of the report's own project.
        runs = wr.Runset(
            name="by cell" if section.by_cell else "runs",
            groupby=["config.cell"] if section.by_cell else [],
            filters=f"Tags() in [{tags}]" if tags else "",
        )
        panels = [_panel(panel, section, place) for place, panel in enumerate(section.panels)]
        blocks += [wr.H1(section.title), wr.P(section.says), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def _panel(panel: Panel, section: Section, place: int) -> WandbPanel:
    import wandb_workspaces.reports.v2 as wr

    row, column = divmod(place, section.columns)
    height = max(_HEIGHT[one.kind] for one in section.panels)
    width = _WIDTH // section.columns
    layout = wr.Layout(x=column * width, y=row * height, w=width, h=height)
    if panel.kind == "lines":
        together = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"} if section.by_cell else {}
        return wr.LinePlot(title=panel.title, x=panel.x, y=list(panel.keys), layout=layout, **together)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys), range_x=(0, 1), layout=layout)
    if panel.kind == "pictures":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=3, layout=layout)
    return wr.WeavePanelSummaryTable(table_name=panel.keys[0], layout=layout)


def save(report: Report) -> None:
    """Send a report to W&B.

    Raises:
        MetasegError: without an account or network, or where W&B refuses it.
    """
    from metaseg.tracking import has_api_key

    if not has_api_key():  # W&B would stop and ask for one
        raise MetasegError("Saving a report needs a W&B API key, found none: run `wandb login`, or set WANDB_API_KEY.")
    try:
        report.save()
    except Exception as error:  # the package raises whatever its transport does
        raise MetasegError(
            f"W&B did not take the report ({' '.join(str(error).split())}): check entity, project, key and network."
        ) from error


def listing() -> str:
    """The sections and panels as text, with the names of what each shows."""
    lines = []
    for section in sections():
        lines += [section.title, *(f"  {one.kind:9}{one.title}: {', '.join(one.keys)}" for one in section.panels)]
    return "\n".join(lines)
