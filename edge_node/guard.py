"""The only door out: builds the one value that leaves this machine, from an allow-list of shared tensor names.

Whatever is not named in the body's layout cannot be in the update, since the update is assembled from those names and from
nothing else. It is clipped, written to the artist's ledger, and only then handed on: what is not in the ledger was not sent.
"""

from __future__ import annotations

from edge_node.config import Home
from export.files import digest_of
from export.ledger import Ledger
from models import privacy
from models.update import Arrays, Assignment, Layout, Update


def outgoing(
    home: Home, assignment: Assignment, trained: Arrays, layout: Layout, losses: tuple[float, float], steps: int
) -> Update:
    """Make the update of a round.

    Args:
        home: this machine's folder; its ledger gets a line.
        assignment: what was asked, with the body training started from and the clip.
        trained: every tensor of the network after training, private ones included.
        layout: names and shapes of the shared tensors: the allow-list.
        losses: mean training loss at the beginning and at the end.
        steps: batches trained on.

    Returns:
        The update; nothing else of this machine is in it.

    Raises:
        ResourceError: the ledger cannot be written, so nothing may be sent.
        ValueError: the training spoilt the body.
    """
    shared = {name: trained[name] for name in layout.names}
    delta = layout.flatten(shared) - assignment.body
    clipped = privacy.clip(delta, assignment.clip)
    Ledger(home.ledger_file).append(
        {
            "what": "update",
            "federation": assignment.federation,
            "round": assignment.round,
            "tensors": list(layout.names),
            "bytes": clipped.nbytes,
            "norm": privacy.norm(delta),
            "norm-sent": privacy.norm(clipped),
            "sha256": digest_of(clipped.tobytes()),
            "loss-before": losses[0],
            "loss-after": losses[1],
            "steps": steps,
        }
    )
    return Update(
        round=assignment.round,
        tensors=layout.names,
        layout_digest=layout.digest,
        delta=clipped,
        loss_before=losses[0],
        loss_after=losses[1],
        steps=steps,
    )
