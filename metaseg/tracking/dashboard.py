"""A saved Weights & Biases report for the logged values of runs: `metaseg dashboard ENTITY/PROJECT`.

`sections` defines the panels as data, so they can be checked against what a run logs without W&B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metaseg.errors import MetasegError, installing

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Panel as WandbPanel
    from wandb_workspaces.reports.v2 import Report

TARGETS = ("isic", "kvasir", "kvasir_capsule")
"""The paper's targets."""
POOLS = ("ph2", "kvasir", "cvc", "isic")
"""The paper's source datasets."""
_SCORES = ("dsc", "dsc_low", "dsc_high", "dsc_before", "dsc_scratch", "dsc_trivial", "iou")
_PRETRAINING = ("validation/dice", "validation/dice_unfiltered", "validation/dice_slices")
_WIDTH = 24  # of a W&B report, in grid units
_HEIGHT = {"lines": 8, "bars": 8, "pictures": 14, "table": 16}


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: "lines", "bars", "pictures" or "table".
        title: shown above it.
        keys: names of logged values; W&B leaves those that no run has empty. Of lines, a single one may be a regular
            expression, which ends in ".*".
        x: axis of lines.
    """

    kind: str
    title: str
    keys: tuple[str, ...]
    x: str = ""


@dataclass(frozen=True)
class Section:
    """Panels under a heading, `columns` per row.

    Attributes:
        title: the heading.
        says: a sentence below it.
        panels: in row-major order.
        columns: panels in a row.
        by_cell: whether to show runs that differ only in their seed as one line: their mean, with a band from minimum
            to maximum.
    """

    title: str
    says: str
    panels: tuple[Panel, ...]
    columns: int = 2
    by_cell: bool = True


def sections(targets: Sequence[str] = TARGETS, pools: Sequence[str] = POOLS) -> tuple[Section, ...]:
    """The dashboard's sections, most important first."""

    def lines(title: str, *keys: str, x: str = "trainer/global_step") -> Panel:
        return Panel("lines", title, keys, x)

    def of_target(target: str, *names: str) -> tuple[str, ...]:
        return tuple(f"test/{target}/{name}" for name in names)

    return (
        Section(
            "Results",
            "Scores on the targets, as fractions: Dice after adaptation with the ends of its 95 % interval, before "
            "adaptation, of fine-tuning without a pair on the same support images and of the best trivial baseline; "
            "IoU after adaptation. Seeds of a cell are averaged, the ends of intervals too.",
            tuple(Panel("bars", f"Scores on {name}", of_target(name, *_SCORES)) for name in targets),
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
            "Training and validation; the gap between before and after is the gain of the inner loop.",
            (
                lines("Validation loss", "validation/query_loss_before", "validation/query_loss_after", x="epoch"),
                lines("Validation Dice", "validation/dice_before", "validation/dice_after", x="epoch"),
                lines("Training loss of the query set", "train/query_loss_after"),
                lines("Training Dice of the query set", "train/query_dice_after"),
            ),
        ),
        Section(
            "Inner and outer loop",
            "Quality of the meta-gradients. The residual shows how well the linear system was solved, stationarity how "
            "far the inner loop was from its minimum (1: it did not move); a solve ends early at a negative curvature "
            "of I + C/λ. Only iMAML logs all of them.",
            (
                lines("Relative residual of conjugate gradient", "train/cg_residual"),
                lines("Stationarity of the inner loop", "train/stationarity"),
                lines("Inner steps taken", "train/inner_steps"),
                lines("Share of inner problems not solved, or not moved", "train/unsolved", "train/still"),
                lines("Distance moved, relative to the norm of the parameters", "train/moved"),
                lines("Norm of the meta-gradient", "train/gradient_norm"),
                lines("Smallest curvature met", "train/smallest_curvature"),
                lines("Curvature products per solve", "train/cg_iterations"),
                lines("Share of solves ended by negative curvature", "train/cg_negative_curvature"),
                lines("Support loss in the inner loop", "train/support_loss_before", "train/support_loss_after"),
                lines("Learned strengths λ", "train/lambda/.*"),
                lines("Outer steps skipped so far", "train/skipped"),
                lines("Further losses: denoising, reversed roles", "train/surrogate_loss", "train/reversed_loss"),
            ),
        ),
        Section(
            "The same images over epochs",
            "Held-out images of the pair, before and after the inner loop: truth cyan, prediction yellow. The slider "
            "selects the epoch.",
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
        Section(
            "Pre-training",
            "Runs of `metaseg pretrain`; Dice is of whole volumes, of their largest component or unfiltered, and of "
            "slices.",
            (
                lines("Training loss of a batch", "train/loss"),
                lines("Loss of validation patients", "validation/loss", x="epoch"),
                lines("Dice of validation patients", *_PRETRAINING, x="epoch"),
            ),
            columns=3,
            by_cell=False,
        ),
    )


def build(entity: str, project: str, tables: Sequence[int] = (), title: str = "metaseg") -> Report:
    """Build the report without saving it; needs no network.

    Args:
        entity: the W&B team or user.
        project: the project whose runs it shows.
        tables: show only runs of these tables of the paper. Empty: all runs.
        title: of the report.

    Raises:
        MetasegError: if the package wandb-workspaces is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise MetasegError(
            f"A report needs wandb-workspaces ({error}): {installing('dashboard')}, or "
            "create the panels by hand as described in docs/wandb.md."
        ) from error
    tags = ", ".join(f"'table {number}'" for number in tables)
    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections():
        # Without entity and project, a run set uses the report's project.
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
        several = panel.keys[0].endswith(".*")
        shown = {"metric_regex": panel.keys[0]} if several else {"y": list(panel.keys)}
        return wr.LinePlot(title=panel.title, x=panel.x, layout=layout, **shown, **together)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.keys), range_x=(0, 1), layout=layout)
    if panel.kind == "pictures":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=3, layout=layout)
    return wr.WeavePanelSummaryTable(table_name=panel.keys[0], layout=layout)


def save(report: Report) -> None:
    """Send a report to W&B.

    Raises:
        MetasegError: without an account or network, or if W&B refuses it.
    """
    from metaseg.tracking import has_api_key

    if not has_api_key():  # otherwise W&B would prompt for one
        raise MetasegError("Saving a report needs a W&B API key, found none: run `wandb login`, or set WANDB_API_KEY.")
    try:
        report.save()
    except Exception as error:  # the package raises any error of its transport
        raise MetasegError(
            f"W&B refused the report ({' '.join(str(error).split())}); check entity, project, key and network."
        ) from error


def listing() -> str:
    """The sections and panels as text, with the names of their logged values."""
    lines = []
    for section in sections():
        lines += [section.title, *(f"  {one.kind:9}{one.title}: {', '.join(one.keys)}" for one in section.panels)]
    return "\n".join(lines)
