"""Adapters of relational knowledge: embeddings of one width."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.distill.knowledge.adapters import Shape, check_shape, embedding
from edgekd.distill.knowledge.relation import correlation, graph


class CorrelationAdapter(nn.Module):
    """Embeds both sides in `dim` dimensions (Peng et al. 2019); of a map the mean over positions is embedded.

    The student's embedding learns. The teacher's is a fixed random projection: were both to learn, both could map all
    samples to one point.

    Args:
        student: (C_s,) or (C_s, H, W).
        teacher: (C_t,) or (C_t, H, W).
        samples: not used.
        dim: width of the embeddings.
    """

    def __init__(self, student: Shape, teacher: Shape, *, samples: int = 0, dim: int = 128) -> None:
        super().__init__()
        self.student = nn.Linear(check_shape(student, "correlation")[0], dim)
        self.teacher = nn.Linear(check_shape(teacher, "correlation")[0], dim).requires_grad_(False)

    def forward(self, student: Tensor, teacher: Tensor, **also: Tensor) -> Tensor:
        """`correlation` of the embeddings."""
        return correlation(self.student(embedding(student)), self.teacher(embedding(teacher.detach())))


class GraphAdapter(nn.Module):
    """Brings the student's nodes to the teacher's width (Liu et al. 2019); of a map the mean over positions is a node.

    Args:
        student: (C_s,) or (C_s, H, W).
        teacher: (C_t,) or (C_t, H, W).
        samples: not used.
        node_weight: see `graph`.
        edge_weight: see `graph`.
    """

    def __init__(
        self, student: Shape, teacher: Shape, *, samples: int = 0, node_weight: float = 1.0, edge_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.project = nn.Linear(check_shape(student, "graph")[0], check_shape(teacher, "graph")[0])
        self.node_weight, self.edge_weight = node_weight, edge_weight

    def forward(self, student: Tensor, teacher: Tensor, **also: Tensor) -> Tensor:
        """`graph` of the projected student."""
        nodes = self.project(embedding(student))
        return graph(nodes, embedding(teacher), node_weight=self.node_weight, edge_weight=self.edge_weight)
