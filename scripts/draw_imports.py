"""The rooms of metaseg and the imports between them, read from the source: python scripts/draw_imports.py --write

Without --write it prints the drawing; with it, the part of docs/architecture.md between the two marks is replaced.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by scripts/draw_imports.py -->", "<!-- end of the drawing -->"

ROOMS = {
    "metaseg": "what everything uses: errors, progress, where the configuration lies",
    "meta": "the mathematics: losses, inner loop, curvature products, conjugate gradient, meta-gradients; torch alone",
    "networks": "networks, norm statistics, pre-trained weights, adapted segmenters",
    "runs": "what a run leaves: directory, settings, provenance, summary; which table it fills a line of",
    "plots": "figures, overlays, contact sheets",
    "data/synthetic": "painted twins of the datasets",
    "data": "catalogue, checks, prepared pools, episodes",
    "data/fetching": "archives: downloaded, verified, unpacked",
    "data/mri": "brain MRI, for pre-training",
    "evaluation": "meta-test, scores, intervals, paired tests, trivial baselines",
    "learners": "the learners, fine-tuning; from settings to a learner",
    "tracking": "metrics.csv, Weights & Biases and its saved report",
    "training": "the run itself: outer steps, pre-training, callbacks",
    "adapting": "load, adapt, segment, export; needs no trainer",
    "reporting": "the page and the tables, from run directories alone",
    "sweeps": "the cells of a table, launchers, estimates of time and memory",
    "app": "the web page",
    "cli": "how commands start",
}
"""Every room, from the ground up: a room imports from those that come before it alone."""


def room_of(module: str) -> str:
    """The room of a dotted module name; the longest folder that is a room."""
    parts = module.split(".")[1:]
    # `python -m metaseg.data` and the like are doors of cli, whichever folder Python wants them in.
    if parts and parts[-1] == "__main__":
        return "cli"
    for length in (2, 1):
        if "/".join(parts[:length]) in ROOMS:
            return "/".join(parts[:length])
    return "metaseg"


def modules() -> dict[str, Path]:
    """Every module of metaseg by its dotted name; packages by that of their folder."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "metaseg").rglob("*.py"))
    }


def imports() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """(room, room that it imports from) → the pairs of modules, deferred imports and those for types included."""
    known = modules()
    arrows = defaultdict(set)
    for module, path in known.items():
        # `metaseg.load` is a door of adapting.
        if module == "metaseg":
            continue
        for name in _imported(ast.parse(path.read_text(encoding="utf-8")), known):
            if room_of(name) != room_of(module):
                arrows[room_of(module), room_of(name)].add((module, name))
    return dict(arrows)


def _imported(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else str(node.module) for name in full)
    return {name for name in found if name == "metaseg" or name.startswith("metaseg.")}


def upward(arrows: dict[tuple[str, str], set[tuple[str, str]]]) -> list[str]:
    """Imports against the order of `ROOMS`, as sentences; without any there is no circle either."""
    order = list(ROOMS)
    return [
        f"{module} ({room}) imports {name} ({other}), which comes after it"
        for (room, other), pairs in sorted(arrows.items())
        if order.index(other) > order.index(room)
        for module, name in sorted(pairs)
    ]


def drawn() -> str:
    """The drawing as Markdown: a graph, and what each room is."""
    arrows = imports()
    # Every room uses the ground floor; those arrows would hide the others.
    shown = sorted((one, other) for one, other in arrows if other != "metaseg")
    direct = [(one, other) for one, other in shown if not _around(one, other, shown)]
    lines = ["```mermaid", "graph BT"]
    lines += [f"    {_node(room)}[{room}]" for room in ROOMS if room != "metaseg"]
    lines += [f"    {_node(one)} --> {_node(other)}" for one, other in direct]
    lines += ["```", ""]
    lines += [
        f"{len(ROOMS)} rooms, {len(arrows)} pairs of them with imports. The list goes from the ground up:",
        "no room imports from one below it in the list. In the graph an arrow points to what is imported;",
        "arrows to the first room are left out, and those that follow from others.",
        "",
        "| room | what it holds | imports from |",
        "|---|---|---|",
    ]
    for room, text in ROOMS.items():
        used = [other for other in ROOMS if (room, other) in arrows and other != "metaseg"]
        where = "metaseg/*.py" if room == "metaseg" else f"metaseg/{room}/"
        lines.append(f"| {where} | {text} | {', '.join(used)} |")
    return "\n".join(lines)


def _around(one: str, other: str, arrows: list[tuple[str, str]]) -> bool:
    """Whether a longer way leads from one room to the other."""
    reached, waiting = set(), [end for start, end in arrows if start == one and end != other]
    while waiting:
        room = waiting.pop()
        if room not in reached:
            reached.add(room)
            waiting += [end for start, end in arrows if start == room]
    return other in reached


def _node(room: str) -> str:
    return room.replace("/", "_")


def page() -> str:
    """docs/architecture.md with the drawing of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{drawn()}\n\n{END}{after}"


def main() -> int:
    """Print the drawing, or write it; exit status 1 where an import goes upward."""
    wrong = upward(imports())
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(drawn())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
