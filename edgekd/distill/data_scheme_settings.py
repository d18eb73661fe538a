"""Options of the schemes by what the data is: unlabelled, paired, private, of another domain, made (torch-free)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgekd.config import Settings
from edgekd.distill.scheme_settings import TrainedNetwork
from edgekd.distill.term_settings import Pair, Share
from edgekd.models.settings import ModelSettings

Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class LabelFreeSettings(Settings):
    """What the teacher is asked about."""

    transfer: str = "unlabelled"
    """The table on which the teacher's word alone is learned, or `train`; its labels are not looked at."""


class PrivilegedSettings(Settings):
    """(1 - l) CE + l T^2 KL to a teacher that sees more; `task_weight` and `knowledge` take its place."""

    imitation: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The share l of the teacher's word."""
    temperature: float = Field(default=4.0, gt=0)
    """Temperature T of both softmaxes."""


class CrossModalSettings(Settings):
    """Where the pairs are."""

    pairs: str = "train"
    """The table whose rows hold both modalities."""


class ExpansionSettings(Settings):
    """Noisy Student: rounds of labelling and learning."""

    rounds: Count = 3
    """How often a fresh student learns from the one before."""
    unlabelled: str = "unlabelled"
    """The table that is labelled; its own labels are not looked at."""
    confident: Probability | None = None
    """Least probability of a class for a row to be kept; by default all are."""
    soft: bool = True
    """Whether probabilities are learned, or the most probable class."""


class AdaptationSettings(Settings):
    """Self-training on another domain."""

    domain: str = "target"
    """The table of the other domain; its labels are not looked at."""
    confident: Probability | None = 0.9
    """Least probability of a class for a row to be kept; null: all are."""
    rounds: Count = 3
    """How often its rows are labelled and learned."""


class AdversarialSettings(Settings):
    """The critic that tells student from teacher: two layers, on the first head or on what layers give."""

    weight: Share = 0.1
    """Weight of the critic's word in the student's loss."""
    layers: Pair | None = None
    """Modules of student and teacher whose outputs it sees, of as many channels; by default it sees the first head."""
    width: Count = 64
    """Units of its hidden layer."""
    lr: float = Field(default=1e-3, gt=0)
    """Its learning rate (Adam)."""


class MultiTaskSettings(Settings):
    """Who knows which head."""

    teachers: dict[str, TrainedNetwork] = Field(default_factory=dict)
    """For each output of the student the network that gives this output alone."""


class FederatedSettings(Settings):
    """How rows are dealt out, and how clients and server learn."""

    clients: Annotated[int, Field(ge=2)] | Annotated[tuple[ModelSettings, ...], Field(min_length=2)] = 5
    """How many clients start each round as copies of the student, which becomes their average (FedDF); or a list of
    networks of any kind, which keep their weights and learn from the common word too (FedMD)."""
    concentration: Annotated[float, Field(gt=0)] | None = 0.1
    """How unevenly classes are dealt out (Dirichlet; small: few classes each); null: evenly."""
    rounds: Count = 10
    """How often clients and server learn."""
    public: str = "public"
    """The table on which clients are heard; its labels are not looked at."""
    client_epochs: Count | None = None
    """Passes of each client over its rows in each round; by default those of the server."""
    least: Count = 8
    """Rows that each client has at least."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the server's lesson."""


class DataFreeSettings(Settings):
    """The generator, and what it is asked for; rows of the training split are not looked at."""

    noise: Count = 100
    """Width of a row of noise."""
    rows: Count = 6400
    """Made samples of an epoch."""
    every: Count = 1
    """The generator learns in every so-manieth step of the student."""
    width: Count = 64
    """Channels of its convolutions for images; for vectors four times as many units."""
    lr: float = Field(default=1e-3, gt=0)
    """Its learning rate (Adam)."""
    one_hot: Share = 1.0
    """Weight of samples that look like some class (DAFL, Chen et al. 2019)."""
    entropy: Share = 5.0
    """Weight of all classes alike often (DAFL)."""
    activation: Share = 0.1
    """Weight of samples that excite `features` (DAFL)."""
    features: str | None = None
    """A module of the teacher for `activation`; with `:in` what it is given."""
    statistics: Share = 1.0
    """Weight of batches with the running statistics of the teacher's BatchNorm layers (DeepInversion, Yin et al.
    2020)."""
    disagreement: Share = 1.0
    """Weight of samples on which student and teacher differ (DFAD, Fang et al. 2019)."""
