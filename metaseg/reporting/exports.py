"""A table as Markdown, LaTeX (booktabs) and CSV. Dice in %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaseg.reporting.cells import NO_PAIR, Block, Line, covers
from metaseg.reporting.differences import uneven
from metaseg.runs.directory import write_csv
from metaseg.runs.summary import TRIVIAL, percent
from metaseg.system import replacing

NOT_RUN = "–, not run"

UNEVEN = "Runs of this table differ in"
"""Before a line of `uneven`."""

COUNTS = "Seeds, draws, images"
HEADINGS = ("System", "Shots", "Paper", "Ours", "95 % interval", "Difference", "Steps", COUNTS, NO_PAIR)
CSV_COLUMNS = (
    *("table", "target", "system", "beyond_paper", "shots", "adaptation_steps"),
    *("paper", "quoted", "ours", "low", "high", "difference", "best"),
    *("seeds", "lowest_seed", "highest_seed", "draws", "images", "scratch", *TRIVIAL),
    *("before", "after_inner_problem", "alone", "failed", "unsolved", "training_passes", "training_seconds"),
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "²": r"\textsuperscript{2}",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
}


def signed(value: float | None) -> str:
    """A difference of fractions in points, signed; – if missing or NaN."""
    return "–" if value is None or math.isnan(value) else with_sign(100 * value, 1)


def with_sign(value: float, digits: int) -> str:
    """A signed number; one that rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """Bounds in per cent; – if unknown."""
    return "–" if "–" in (percent(low), percent(high)) else f"{percent(low)} to {percent(high)}"


def signed_interval(low: float, high: float) -> str:
    """Bounds of a difference in points, signed; – if unknown."""
    return "–" if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def paper(line: Line) -> str:
    """The published figure with two digits, marked if quoted."""
    if line.paper is None:
        return ""
    return percent(line.paper, 2) + (" (quoted)" if line.row.quoted else "")


def texts(line: Line) -> dict[str, str]:
    """A line of a table: heading → text, the same in every format."""
    shots = ", ".join(map(str, line.shots))
    beside = {NO_PAIR: percent(line.scratch)} | {key: percent(line.trivial.get(key)) for key in TRIVIAL}
    if len(line.shots) > 1:
        beside = dict.fromkeys(beside, "")
    found = {"System": line.row.label, "Shots": shots, "Paper": paper(line)}
    if line.ours is None:
        return {**found, "Steps": "", "Ours": NOT_RUN, "95 % interval": "", "Difference": "", COUNTS: "", **beside}
    dice = line.ours.dice
    return {
        **found,
        "Steps": str(line.ours.steps) if line.ours.steps else "–",
        "Ours": percent(dice.mean),
        "95 % interval": interval(dice.low, dice.high),
        "Difference": signed(line.difference) if line.paper is not None else "",
        COUNTS: f"{line.ours.seeds}, {line.ours.draws}, {line.ours.images}",
        **beside,
    }


def caption(blocks: Sequence[Block]) -> str:
    """What the numbers of the table are."""
    over = covers(line.ours for block in blocks for line in block.lines if line.ours is not None)
    return f"Dice in %; the interval is over {over}." if over else "Dice in %."


def markdown(blocks: Sequence[Block], titles: Mapping[str, str]) -> str:
    """The table as Markdown, one part per target; our best result at each number of shots is bold."""
    table = blocks[0].table
    lines = [f"# Table {table.number}: {table.title}", "", caption(blocks)]
    for block in blocks:
        headings = [*HEADINGS, *TRIVIAL.values()]
        lines += ["", f"## {titles.get(block.target, block.target)}", "", "| " + " | ".join(headings) + " |"]
        lines += ["|---|" + "---:|" * (len(headings) - 1)]
        for line in block.lines:
            cells = texts(line)
            if line.best:
                cells["Ours"] = f"**{cells['Ours']}**"
            lines.append("| " + " | ".join(cells[key].replace("|", "\\|") for key in (*HEADINGS, *TRIVIAL)) + " |")
    lines += [line for said in uneven(blocks) for line in ("", f"{UNEVEN} {said}.")]
    return "\n".join(lines) + "\n"


def latex(blocks: Sequence[Block], titles: Mapping[str, str]) -> str:
    r"""The table for LaTeX with \usepackage{booktabs}, one tabular per target; our best result at each shots is
    bold."""
    table = blocks[0].table
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}",
        "  \\centering\\scriptsize\\setlength{\\tabcolsep}{3pt}",
    ]
    lines += [f"  \\caption{{{escaped(f'{table.title}. {caption(blocks)}')}}}"]
    lines += [f"  \\label{{tab:metaseg{table.number}}}"]
    for block in blocks:
        headings = [*HEADINGS, *TRIVIAL.values()]
        lines += [f"  \\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", "    \\toprule"]
        lines += [
            f"    \\multicolumn{{{len(headings)}}}{{l}}{{{escaped(titles.get(block.target, block.target))}}} \\\\"
        ]
        lines += ["    \\midrule", "    " + " & ".join(map(escaped, headings)) + " \\\\", "    \\midrule"]
        further = False
        for line in block.lines:
            if line.row.further and not further:
                lines.append("    \\midrule")
            further = line.row.further
            cells = {key: escaped(text) for key, text in texts(line).items()}
            if line.best:
                cells["Ours"] = f"\\textbf{{{cells['Ours']}}}"
            lines.append("    " + " & ".join(cells[key] for key in (*HEADINGS, *TRIVIAL)) + " \\\\")
        lines += ["    \\bottomrule", "  \\end{tabular}", ""]
    return "\n".join([*lines[:-1], "\\end{table*}", *(f"% {UNEVEN} {said}." for said in uneven(blocks))]) + "\n"


def rows(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """The table as rows of `CSV_COLUMNS`: numbers in % with four digits, None if missing."""
    return [_row(block, line, shots) for block in blocks for line in block.lines for shots in line.shots]


def _row(block: Block, line: Line, shots: int) -> dict[str, Any]:
    def number(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else round(100 * value, 4)

    mine, on_the_way = line.ours, line.stages
    mean, low, high = mine.dice if mine else (None, None, None)
    alone = len(line.shots) == 1  # the baselines of a line with several shots belong to the first of them
    return {
        "table": block.table.number,
        "target": block.target,
        "system": line.row.label,
        "beyond_paper": line.row.further,
        "shots": shots,
        "adaptation_steps": mine.steps if mine else None,
        "paper": number(line.paper),
        "quoted": line.row.quoted,
        "ours": number(mean),
        "low": number(low),
        "high": number(high),
        "difference": number(line.difference),
        "best": line.best,
        "seeds": mine.seeds if mine else None,
        "lowest_seed": number(min(mine.by_seed.values())) if mine else None,
        "highest_seed": number(max(mine.by_seed.values())) if mine else None,
        "draws": mine.draws if mine else None,
        "images": mine.images if mine else None,
        "scratch": number(line.scratch) if alone else None,
        **{key: number(line.trivial.get(key)) if alone else None for key in TRIVIAL},
        "before": number(on_the_way.before) if on_the_way else None,
        "after_inner_problem": number(on_the_way.inner) if on_the_way else None,
        "alone": number(on_the_way.alone) if on_the_way else None,
        "failed": number(on_the_way.failed) if on_the_way else None,
        "unsolved": number(on_the_way.unsolved) if on_the_way else None,
        "training_passes": on_the_way.passes if on_the_way else None,
        "training_seconds": on_the_way.seconds if on_the_way else None,
    }


def export(blocks: Sequence[Block], titles: Mapping[str, str], folder: Path) -> list[Path]:
    """Write tableN.md, tableN.tex and tableN.csv; `titles`: display names of targets.

    Raises:
        MetasegError: if a file cannot be written.
    """
    stem = f"table{blocks[0].table.number}"
    paths = [folder / f"{stem}.{suffix}" for suffix in ("md", "tex", "csv")]
    for path, text in zip(paths, (markdown(blocks, titles), latex(blocks, titles)), strict=False):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_csv(paths[2], rows(blocks), CSV_COLUMNS)
    return paths


def escaped(text: str) -> str:
    """Text escaped for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
