"""Options of every knowledge (torch-free), with the weights and settings that the papers' CIFAR runs used."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from edgekd.config import Settings
from edgekd.distill.term_settings import (
    OF_THE_TERM,
    ClassSettings,
    FeatureSettings,
    InitialSettings,
    OwnSettings,
    Pair,
    Ramp,
    Share,
    Temperature,
    TermSettings,
    Weight,
    own_settings,
)


class KdSettings(ClassSettings):
    """KL of softened outputs (Hinton et al. 2015)."""

    task_weight: ClassVar[float | None] = 0.1

    weight: Weight = 0.9
    temperature: Temperature = 4.0


class DkdSettings(ClassSettings):
    """The target class and the other classes apart (Zhao et al. 2022); needs labels."""

    needs_target: ClassVar[bool] = True
    task_weight: ClassVar[float | None] = 1.0

    ramp: Ramp = 20.0
    temperature: Temperature = 4.0
    alpha: Share = 1.0
    """Weight of the KL between the target class and all others together."""
    beta: Share = 8.0
    """Weight of the KL among the other classes."""


class DistSettings(ClassSettings):
    """Correlation of outputs within each sample and within each class (Huang et al. 2022)."""

    task_weight: ClassVar[float | None] = 1.0

    temperature: Temperature = 4.0
    beta: Share = 2.0
    """Weight of the correlation within each sample."""
    gamma: Share = 2.0
    """Weight of the correlation within each class, over the batch."""


class LogitStdSettings(ClassSettings):
    """KL of standardised, softened outputs (Sun et al. 2024)."""

    task_weight: ClassVar[float | None] = 0.1

    weight: Weight = 9.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature T: the softened logits have the standard deviation 1 / T."""
    scale_by_t2: bool = True
    """Whether the loss carries T^2."""


class ReverseKlSettings(ClassSettings):
    """KL the other way round: the student keeps to what the teacher finds likely (Gu et al. 2024)."""

    task_weight: ClassVar[float | None] = 0.1

    weight: Weight = 0.9
    temperature: Temperature = 4.0


class JensenShannonSettings(ClassSettings):
    """Jensen-Shannon divergence of softened outputs, which is bounded (Lin 1991)."""

    task_weight: ClassVar[float | None] = 0.1

    weight: Weight = 0.9
    temperature: Temperature = 4.0


class MseLogitsSettings(TermSettings):
    """Squared difference of outputs: regression heads, or logits (Ba and Caruana 2014)."""

    task_weight: ClassVar[float | None] = 0.1

    weight: Weight = 0.9


class HintSettings(FeatureSettings):
    """Squared difference of maps behind a learned 1x1 regressor; a middle stage (Romero et al. 2015)."""

    weight: Weight = 100.0


class AttentionSettings(FeatureSettings):
    """Where maps are active, whatever the channel; all stages (Zagoruyko and Komodakis 2017)."""

    weight: Weight = 1000.0
    power: Annotated[float, Field(ge=1)] = 2.0
    """Power of the activations: the larger, the more the strongest count."""


class NstSettings(FeatureSettings):
    """MMD between distributions of the channels' activation patterns (Huang and Wang 2017)."""

    weight: Weight = 50.0


class FactorSettings(FeatureSettings):
    """Factors of the teacher's map, by a paraphraser that is trained first, and of the student's (Kim et al. 2018)."""

    weight: Weight = 200.0
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Channels of a factor over channels of the teacher's map."""
    power: Annotated[float, Field(ge=1)] = 1.0
    """1: absolute difference; 2: squared difference."""
    paraphraser_steps: Annotated[int, Field(ge=1)] = 500
    """Steps at the start in which the paraphraser learns, and the student nothing from it."""
    reconstruction: Annotated[float, Field(gt=0)] = 0.005
    """Weight of the paraphraser's own loss in these steps, under the weight of the term."""


class BoundarySettings(InitialSettings):
    """Which neurons are on: a hinge on the signs of activations, for a phase before training (Heo et al. 2019)."""

    margin: Annotated[float, Field(gt=0)] = 1.0
    """How far beyond 0 the student must be on the teacher's side."""


class FspSettings(InitialSettings):
    """How features flow from stage to stage, as Gram matrices, for a phase before training (Yim et al. 2017)."""

    @model_validator(mode="after")
    def _stages(self) -> FspSettings:
        if self.layers != "auto" and len(self.layers) < 2:
            raise ValueError("fsp compares neighbouring stages | name two or more: layers: [[s1, t1], [s2, t2]]")
        return self


class ReviewSettings(FeatureSettings):
    """The student's stages, fused from deep to shallow, at several resolutions (ReviewKD, Chen et al. 2021)."""

    ramp: Ramp = 20.0
    width: Annotated[int, Field(ge=1)] | None = None
    """Channels of the fusion; by default those of the deepest student stage, at most 512."""


class HierarchicalContextSettings(FeatureSettings):
    """Stages of equal channels at several resolutions, without fusion (Chen et al. 2021)."""


class SimilaritySettings(FeatureSettings):
    """Which samples of a batch are alike; the last stage (Tung and Mori 2019)."""

    weight: Weight = 3000.0


class RkdSettings(FeatureSettings):
    """Distances of pairs and angles of triples of samples (Park et al. 2019)."""

    distance_weight: Share = 25.0
    """Weight of the distances."""
    angle_weight: Share = 50.0
    """Weight of the angles; they take memory for the third power of the batch."""


class CorrelationSettings(FeatureSettings):
    """Correlation of neighbours in a batch, in an embedding (Peng et al. 2019)."""

    weight: Weight = 0.02
    dim: Annotated[int, Field(ge=1)] = 128
    """Width of the embedding."""


class PktSettings(FeatureSettings):
    """Distributions of cosine similarity over a batch (Passalis and Tefas 2018)."""

    weight: Weight = 30000.0


class GraphSettings(FeatureSettings):
    """Samples as nodes and their distances as edges of a graph (Liu et al. 2019)."""

    node_weight: Share = 1.0
    """Weight of the nodes."""
    edge_weight: Share = 1.0
    """Weight of the edges."""


class VidSettings(FeatureSettings):
    """Mutual information by a Gaussian around what the student predicts, its variance learned (Ahn et al. 2019)."""

    variance: Annotated[float, Field(gt=0)] = 5.0
    """Variance of every channel at the start."""
    eps: Annotated[float, Field(gt=0)] = 1e-5
    """No variance falls below it."""


class CrdSettings(FeatureSettings):
    """Contrast with memory banks of all samples, of other classes where there are labels (Tian et al. 2020)."""

    weight: Weight = 0.8
    negatives: Annotated[int, Field(ge=1)] = 16384
    """Negatives that are drawn for each batch; at most as many as there are samples."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the similarities."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a bank's entry that stays when its sample is seen again."""
    dim: Annotated[int, Field(ge=1)] = 128
    """Width of the projections and banks."""


class KnowledgeSettings(Settings):
    """One knowledge with its settings: `kd: {temperature: 4, weight: 0.9}`, or its name alone for the defaults."""

    kd: KdSettings | None = None
    """Knowledge distillation, the classic."""
    dkd: DkdSettings | None = None
    """Decoupled knowledge distillation."""
    dist: DistSettings | None = None
    """Distillation from a stronger teacher."""
    logit_std: LogitStdSettings | None = None
    """Logit standardisation."""
    reverse_kl: ReverseKlSettings | None = None
    """Reverse KL divergence."""
    jensen_shannon: JensenShannonSettings | None = None
    """Jensen-Shannon divergence."""
    mse_logits: MseLogitsSettings | None = None
    """Squared difference of outputs."""
    hint: HintSettings | None = None
    """Hints to thin networks (FitNets)."""
    attention: AttentionSettings | None = None
    """Attention transfer (AT)."""
    nst: NstSettings | None = None
    """Neuron selectivity transfer."""
    factor: FactorSettings | None = None
    """Factor transfer (FT)."""
    boundary: BoundarySettings | None = None
    """Activation boundaries (AB)."""
    fsp: FspSettings | None = None
    """Flow of the solution procedure."""
    review: ReviewSettings | None = None
    """Knowledge review (ReviewKD)."""
    hierarchical_context: HierarchicalContextSettings | None = None
    """The loss of ReviewKD without its fusion."""
    similarity: SimilaritySettings | None = None
    """Similarity-preserving (SP)."""
    rkd: RkdSettings | None = None
    """Relational knowledge distillation."""
    correlation: CorrelationSettings | None = None
    """Correlation congruence (CC)."""
    pkt: PktSettings | None = None
    """Probabilistic knowledge transfer."""
    graph: GraphSettings | None = None
    """Instance relationship graph (IRG)."""
    vid: VidSettings | None = None
    """Variational information distillation."""
    crd: CrdSettings | None = None
    """Contrastive representation distillation."""

    own: OwnSettings | None = Field(default=None, repr=False)
    """A user's own, written under its import string or its short name."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        """A name alone, with or without a colon, takes all defaults; what is not ours may be the user's."""
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for key, item in value.items():
            given = {} if item is None else item
            found |= {key: given} if key in KNOWLEDGES else own_settings(key, given, KNOWLEDGES)
        return found

    @model_validator(mode="after")
    def _one(self) -> KnowledgeSettings:
        if len(self.model_fields_set) != 1:
            raise ValueError("one knowledge per item of the list | write e.g. - {kd: {temperature: 4}}")
        return self

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.own is not None:
            terms = {name: value for name, value in self.own.canonical().items() if name in OF_THE_TERM}
            return {self.own.name: {**terms, **self.own.options}}
        return {name: settings for name, settings in handler(self).items() if settings is not None}

    @property
    def name(self) -> str:
        """Name of the knowledge; of a user's own: its import string, or what its package calls it."""
        return self.own.name if self.own is not None else next(iter(self.model_fields_set))

    @property
    def settings(self) -> TermSettings:
        """Its settings."""
        found: TermSettings = getattr(self, next(iter(self.model_fields_set)))
        return found

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of its adapter, or of its function where it has none."""
        return self.settings.arguments

    @property
    def weight(self) -> float:
        """Weight of its term."""
        return self.settings.weight

    @property
    def ramp(self) -> float:
        """Epochs over which the weight rises; 0: none."""
        return self.settings.ramp

    @property
    def features(self) -> bool:
        """Whether it compares layers, not what heads give."""
        if self.own is not None:
            return self.own.layers != "auto" or self.own.facts.features
        return isinstance(self.settings, FeatureSettings)

    @property
    def layers(self) -> tuple[Pair, ...] | None:
        """Pairs of module names (student, teacher); None where they are to be found, or where it compares no layers."""
        settings = self.settings
        return settings.layers if isinstance(settings, FeatureSettings) and settings.layers != "auto" else None

    def init_epochs(self, epochs: int) -> int:
        """Epochs of a phase before one of so many, in which it is learned alone; 0: there is none."""
        settings = self.settings
        if not isinstance(settings, InitialSettings):
            return 0
        return -(-epochs // 8) if settings.init_epochs is None else settings.init_epochs

    @property
    def of_classes(self) -> bool:
        """Whether it fits classification heads alone."""
        return self.own.facts.of_classes if self.own is not None else self.settings.of_classes

    @property
    def needs_target(self) -> bool:
        """Whether it cannot do without the true class of a sample."""
        return "target" in self.own.facts.needs if self.own is not None else self.settings.needs_target


KNOWLEDGES = tuple(name for name in KnowledgeSettings.model_fields if name != "own")
