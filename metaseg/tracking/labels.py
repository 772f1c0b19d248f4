"""Labels of a run on the dashboard: the paper's tables, and the cell shared by runs that differ only in their seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from metaseg.runs.schema import LONGEST_TAG, Run
from metaseg.runs.tables import identity, numbers_of


@dataclass(frozen=True)
class Labels:
    """A run's labels on the dashboard.

    Attributes:
        name: learner, pair with mixing, shots, a key of all settings that can change a score, seed; also of its
            checkpoint, since W&B keeps all versions of a name together.
        group: tables and pair; runs without a table: pair and mixing.
        cell: SCALE-PROTOCOL/…, equal for runs that differ only in their seed.
        tags: learner, pair, loss, protocol, scale, shots, each table and the cell, without those that are too long.
    """

    name: str
    group: str
    cell: str
    tags: tuple[str, ...]


def labels_of(settings: Run) -> Labels:
    """The labels of a run.

    Tables are matched by settings, as in reports, so a run that serves two tables has the tags of both, whichever sweep
    it came from.

    Args:
        settings: of the run. `logger.cell`, set by sweeps, names the cell.
    """
    learner, mixing, shots = settings.learner.name, settings.tasks.mixing, settings.shots
    pair = "alone" if settings.pair.name == "none" else settings.pair.name
    tables = numbers_of(settings)
    listed = f"table{'s' if len(tables) > 1 else ''} {'+'.join(map(str, tables))}"
    # Hydra's overrides identify a cell; for a single run, use all settings that affect scores.
    known = identity(settings.plain)
    if settings.learner.train_on == "target" or settings.learner.unlabelled:
        known["target"] = settings.target  # learnt from as well
    key = hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:8]
    own = settings.logger.cell or f"{pair}_{mixing}/{learner}_{shots}shot-{key}"
    scale, protocol = settings.scale.name, settings.protocol.name
    cell = f"{scale}-{protocol}/{own}"  # as in the folders of results; cell names of sweeps omit these two
    tags = (learner, pair, settings.loss, protocol, scale, f"{shots} shots", *(f"table {one}" for one in tables), cell)
    sources = pair.strip("+").replace("+", "_")[:64]  # names of checkpoints have no plus and at most 128 characters
    return Labels(
        name=f"{learner}-{sources}_{mixing}-{shots}shot-{key}-seed{settings.seed}",
        group=f"{listed} {pair}" if tables else f"{pair} {mixing}",
        cell=cell,
        tags=tuple(tag for tag in tags if len(tag) <= LONGEST_TAG),
    )
