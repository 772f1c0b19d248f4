"""Draw the packages of metaseg and the imports between them: python scripts/draw_imports.py --write

Without --write it prints the drawing; with it, it replaces the part of docs/architecture.md between the two markers.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by scripts/draw_imports.py -->", "<!-- end of the drawing -->"

PACKAGES = {
    "metaseg": "shared by all: errors, progress, path of the configuration, YAML and JSON of foreign files",
    "meta": "mathematics, using only torch: losses, inner loop, curvature products, conjugate gradient, meta-gradients",
    "networks": "networks, norm statistics, pre-trained weights, adapted segmenters",
    "runs": "run directories, settings, results, provenance, summary; definitions of the paper's tables",
    "plots": "figures, overlays, contact sheets",
    "data/synthetic": "synthetic twins of the datasets",
    "data": "catalogue, checks, prepared pools, episodes",
    "data/fetching": "download, verify and unpack archives",
    "data/mri": "brain MRI, for pre-training",
    "evaluation": "meta-test, scores, intervals, paired tests, trivial baselines",
    "learners": "the learners, fine-tuning, and building a learner from settings",
    "tracking": "metrics.csv, Weights & Biases and its saved report",
    "training": "training runs: outer steps, pre-training, callbacks",
    "adapting": "load, adapt, segment, export; needs no trainer",
    "reporting": "the HTML report and the tables, built from run directories",
    "sweeps": "the cells of a table, launchers, estimates of time and memory",
    "app": "the web app",
    "cli": "command-line entry points",
}
"""Every package, from the ground up: a package imports only from those before it."""


def package_of(module: str) -> str:
    """The package of a dotted module name: the deepest folder that is a package."""
    parts = module.split(".")[1:]
    # The entry point `python -m metaseg` belongs to cli.
    if parts and parts[-1] == "__main__":
        return "cli"
    for length in (2, 1):
        if "/".join(parts[:length]) in PACKAGES:
            return "/".join(parts[:length])
    return "metaseg"


def modules() -> dict[str, Path]:
    """Every module of metaseg by its dotted name; packages by their folder's name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "metaseg").rglob("*.py"))
    }


def imports() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """(package, imported package) → pairs of modules, including deferred and type-checking imports."""
    known = modules()
    arrows = defaultdict(set)
    for module, path in known.items():
        # `metaseg.load` belongs to adapting.
        if module == "metaseg":
            continue
        for name in _imported(ast.parse(path.read_text(encoding="utf-8")), known):
            if package_of(name) != package_of(module):
                arrows[package_of(module), package_of(name)].add((module, name))
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
    """Imports against the order of `PACKAGES`, as sentences; if there are none, there are no cycles either."""
    order = list(PACKAGES)
    return [
        f"{module} ({package}) imports {name} ({other}), which comes after it"
        for (package, other), pairs in sorted(arrows.items())
        if order.index(other) > order.index(package)
        for module, name in sorted(pairs)
    ]


def drawn() -> str:
    """The drawing as Markdown: a graph and a table of packages."""
    arrows = imports()
    # Every package imports from the first; those arrows would clutter the graph.
    shown = sorted((one, other) for one, other in arrows if other != "metaseg")
    direct = [(one, other) for one, other in shown if not _around(one, other, shown)]
    lines = ["```mermaid", "graph BT"]
    lines += [f"    {_node(package)}[{package}]" for package in PACKAGES if package != "metaseg"]
    lines += [f"    {_node(one)} --> {_node(other)}" for one, other in direct]
    lines += ["```", ""]
    lines += [
        f"{len(PACKAGES)} packages, with imports between {len(arrows)} pairs. The table is in order of dependency: no",
        "package imports from one below it. In the graph, arrows point to the imported package; arrows to the first",
        "package and those implied by others are omitted.",
        "",
        "| package | content | imports from |",
        "|---|---|---|",
    ]
    for package, text in PACKAGES.items():
        used = [other for other in PACKAGES if (package, other) in arrows and other != "metaseg"]
        where = "metaseg/*.py" if package == "metaseg" else f"metaseg/{package}/"
        lines.append(f"| {where} | {text} | {', '.join(used)} |")
    return "\n".join(lines)


def _around(one: str, other: str, arrows: list[tuple[str, str]]) -> bool:
    """Whether a longer path leads from one package to the other."""
    reached, waiting = set(), [end for start, end in arrows if start == one and end != other]
    while waiting:
        package = waiting.pop()
        if package not in reached:
            reached.add(package)
            waiting += [end for start, end in arrows if start == package]
    return other in reached


def _node(package: str) -> str:
    return package.replace("/", "_")


def page() -> str:
    """docs/architecture.md with the current drawing."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{drawn()}\n\n{END}{after}"


def main() -> int:
    """Print or write the drawing; exit status 1 if an import violates the order."""
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
