"""A rehearsal of phases on untrained networks: what does not fit is known before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgekd.data.views import Views
from edgekd.train.edits import table_named
from edgekd.train.feed import Feed
from edgekd.train.phase import add_kept, references_of
from edgekd.train.references import Taps, check_references
from edgekd.train.world import Decision, Phase, World


def rehearse_phases(world: World, phases: Sequence[Phase], views: Views, seed: int) -> None:
    """Make what edits make, and look every reference up, as far as it does not depend on what was trained.

    From the first edit on that decides by trained models, only layers of the models there are are looked up.

    Args:
        world: with all tables that the phases start from; it is changed.

    Raises:
        ConfigError: there is no such table, column, model or layer, or an edit does not fit.
    """
    known = True
    for phase in phases:
        for edit in phase.start:
            if isinstance(edit, Decision):
                known = False
            elif known:
                edit(world, seed)
        references = references_of(phase)
        if known and phase.moves:
            feed = Feed(world, table_named(world, phase.data), views, torch.device("cpu"))
            check_references(world, feed.columns(), references)
            add_kept(world, phase)
        Taps(world, [r for r in references if r.name in world.models]).close()
