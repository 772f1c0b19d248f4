"""What the tables show, in up to three sentences."""

from __future__ import annotations

from collections.abc import Sequence

from metaseg.data.check import plural
from metaseg.reporting.cells import Block, Comparison

SIGNIFICANT = 0.05
"""Level of p values corrected for all comparisons of a table."""


def findings(blocks: Sequence[Block]) -> list[str]:
    """Sentences on the pair's worth, on the other learners, and on the paper's figures; those without results are left
    out.

    Args:
        blocks: of all tables. A comparison or line that several tables share counts once.
    """
    known: dict[tuple[str, str, str, int, float], Comparison] = {}
    for block in blocks:
        for one in block.comparisons:
            if one.test is not None:
                known[one.first, one.second, block.target, one.shots, one.test.difference.mean] = one
    compared = list(known.values())
    scratch = [one for one in compared if one.opponent == "scratch"]
    sentences = [
        _against(scratch, "training from scratch"),
        _against([one for one in compared if one not in scratch], "the learners it is compared with"),
        _published(blocks),
    ]
    return [sentence for sentence in sentences if sentence]


def _against(compared: Sequence[Comparison], opponent: str) -> str:
    if not compared:
        return ""
    ahead = [one for one in compared if _certain(one) and one.test.difference.mean > 0]  # type: ignore[union-attr]
    behind = [one for one in compared if _certain(one) and one.test.difference.mean < 0]  # type: ignore[union-attr]
    firsts = ", ".join(dict.fromkeys(one.first for one in compared))
    total = plural(len(compared), "comparison")
    undecided = len(compared) - len(ahead) - len(behind)
    return (
        f"{firsts} is ahead of {opponent} in {len(ahead)} of {total} and behind in {len(behind)}; "
        f"in {undecided} the difference could be chance."
    )


def _certain(one: Comparison) -> bool:
    """Whether the interval excludes 0 and the corrected p value is small."""
    assert one.test is not None
    _, low, high = one.test.difference
    return one.p < SIGNIFICANT and not low <= 0 <= high


def _published(blocks: Sequence[Block]) -> str:
    differences = {
        (line.row.label, block.target, line.shots, line.paper): line.difference
        for block in blocks
        for line in block.lines
        if line.difference is not None
    }
    above = sum(difference > 0 for difference in differences.values())
    return f"Our means are above the paper's in {above} of {plural(len(differences), 'cell')}." if differences else ""
