"""Knowledge: what is transferred. Every knowledge is a pure function (student, teacher, **settings) -> scalar."""

from edgekd.distill.knowledge.generation import (
    activation,
    bn_statistics,
    entropy,
    fake,
    mean_absolute,
    one_hot,
    real,
)
from edgekd.distill.knowledge.information import crd, vid
from edgekd.distill.knowledge.information_adapters import CrdAdapter, VidAdapter
from edgekd.distill.knowledge.intermediate import (
    attention,
    boundary,
    factor,
    fsp,
    hierarchical_context,
    hint,
    nst,
    review,
)
from edgekd.distill.knowledge.intermediate_adapters import BoundaryAdapter, FactorAdapter, HintAdapter, ReviewAdapter
from edgekd.distill.knowledge.multi import confidence_kd, mean_kd, mean_mse, virtual_teacher
from edgekd.distill.knowledge.relation import correlation, graph, pkt, rkd, similarity
from edgekd.distill.knowledge.relation_adapters import CorrelationAdapter, GraphAdapter
from edgekd.distill.knowledge.response import dist, dkd, jensen_shannon, kd, logit_std, mse_logits, reverse_kl
from edgekd.train.knowledge import register

__all__ = [
    "activation",
    "attention",
    "bn_statistics",
    "boundary",
    "confidence_kd",
    "correlation",
    "crd",
    "dist",
    "dkd",
    "entropy",
    "factor",
    "fake",
    "fsp",
    "graph",
    "hierarchical_context",
    "hint",
    "jensen_shannon",
    "kd",
    "logit_std",
    "mean_absolute",
    "mean_kd",
    "mean_mse",
    "mse_logits",
    "nst",
    "one_hot",
    "pkt",
    "real",
    "reverse_kl",
    "review",
    "rkd",
    "similarity",
    "vid",
    "virtual_teacher",
]

register("kd", kd, family="response")
register("dkd", dkd, family="response", needs=("target",))
register("dist", dist, family="response", coupled=True)
register("logit_std", logit_std, family="response")
register("reverse_kl", reverse_kl, family="response")
register("jensen_shannon", jensen_shannon, family="response")
register("mse_logits", mse_logits, family="response")
# Of several teachers, or none: schemes use these, a file does not name them.
register("mean_kd", mean_kd, family="several")
register("confidence_kd", confidence_kd, family="several", needs=("target",))
register("mean_mse", mean_mse, family="several")
register("virtual_teacher", virtual_teacher, family="several", needs=("target",))

# Adapters with `half` run learned layers as the network ran that gave the features.
register("hint", hint, adapter=HintAdapter, family="intermediate", features=True, half=True)
register("attention", attention, family="intermediate", features=True)
register("nst", nst, family="intermediate", features=True)
register("factor", factor, adapter=FactorAdapter, family="intermediate", features=True, half=True)
register(
    "boundary", boundary, adapter=BoundaryAdapter, family="intermediate", levels="several", features=True, half=True
)
register("fsp", fsp, family="intermediate", levels="several", features=True)
register("review", review, adapter=ReviewAdapter, family="intermediate", levels="several", features=True, half=True)
register("hierarchical_context", hierarchical_context, family="intermediate", levels="several", features=True)

register("similarity", similarity, family="relation", coupled=True, features=True)
register("rkd", rkd, family="relation", coupled=True, features=True)
register("correlation", correlation, adapter=CorrelationAdapter, family="relation", coupled=True, features=True)
register("pkt", pkt, family="relation", coupled=True, features=True)
register("graph", graph, adapter=GraphAdapter, family="relation", coupled=True, features=True)

register("vid", vid, adapter=VidAdapter, family="information", features=True, half=True)
# Rows do not meet in crd, but every process needs every row for its own copy of the banks.
register(
    "crd",
    crd,
    adapter=CrdAdapter,
    family="information",
    coupled=True,
    needs=("index",),
    takes=("target",),
    features=True,
)

register("one_hot", one_hot, family="generation")
register("activation", activation, family="generation", features=True)
register("entropy", entropy, family="generation", coupled=True)
register("mean_absolute", mean_absolute, family="generation")
# Not coupled, like BatchNorm itself: each process compares the statistics of its own rows.
register("bn_statistics", bn_statistics, family="generation", features=True)
register("real", real, family="generation")
register("fake", fake, family="generation")
