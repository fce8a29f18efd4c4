"""Configuration of training: every default once; configs/train*.yaml say the same with reasons.

Knows nothing of networks or files.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from workflows.config import STRICT, AtLeast1, NotNegative, Positive
from workflows.storage import StorageConfig
from workflows.train_losses import LossWeights

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class StartConfig:
    """Where the weights come from: a checkpoint to go on from, or a shape with random ones."""

    checkpoint: str | None = None
    shape: str | None = None
    image_size: AtLeast1 | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.shape is None):
            raise ValueError("start: wanted exactly one of checkpoint and shape")


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Clips to learn from: drawn, of a dataset's labels, or of a folder with annotations.

    share: how often a clip is taken from here, beside the other sources.
    """

    kind: Literal["drawn", "dataset", "folder"] = "drawn"
    share: Positive = 1.0
    clips: AtLeast1 = 3000
    seed: NotNegative = 0
    dataset: str | None = None
    reviews: tuple[Literal["open", "accepted"], ...] = ("accepted",)
    annotations: str | None = None
    videos: str | None = None

    def __post_init__(self) -> None:
        needed = {"drawn": (), "dataset": ("dataset",), "folder": ("annotations", "videos")}
        for name in ("dataset", "annotations", "videos"):
            given, wanted = getattr(self, name) is not None, name in needed[self.kind]
            if given != wanted:
                raise ValueError(
                    f"source of kind {self.kind}: {name} is "
                    f"{'given' if given else 'missing'}; it takes {needed[self.kind] or 'neither'}"
                )


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where clips come from and how long they are kept to be."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    frames: AtLeast1 = 8
    size: AtLeast1 | None = None
    min_area_px: AtLeast1 = 64
    loaders: AtLeast1 = 1
    spool: str | None = None


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """How many processes train together; one trains without Ray."""

    count: AtLeast1 = 1
    gpus_each: Literal[0, 1] = 0
    cpus_each: Positive = 1.0
    threads: AtLeast1 = 1


@dataclass(frozen=True, slots=True)
class PicturesConfig:
    """Steps of single pictures among those of clips, so that neither skill is lost to the other."""

    share: Share
    clips: AtLeast1
    objects: AtLeast1
    prompts_each: AtLeast1 = 1


@dataclass(frozen=True, slots=True)
class PhaseConfig:
    """A stretch of training with one kind of batch and one schedule of the learning rate."""

    name: str
    steps: AtLeast1
    clips: AtLeast1
    frames: AtLeast1
    objects: AtLeast1
    learning_rate: Positive
    encoder_scale: Share = 1.0
    warmup_steps: NotNegative = 100
    final_share: Share = 0.02
    click: Share = 0.5
    box: Share = 0.25
    mask: Share = 0.25
    rounds: NotNegative = 1
    correction: Share = 0.0
    truth_in_memory: Share = 0.0
    true_scores: Share = 0.0
    absence: Share = 0.0
    still: Share = 1.0
    prompts_each: AtLeast1 = 1
    box_jitter: Share = 0.1
    pictures: PicturesConfig | None = None
    losses: LossWeights | None = None

    def __post_init__(self) -> None:
        total = self.click + self.box + self.mask
        if abs(total - 1) > 1e-6:
            raise ValueError(f"phase {self.name}: click + box + mask is {total}; wanted 1")


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """AdamW, its clipping, and the running average of the weights that is saved."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Positive = 1.0
    beta2: Share = 0.98
    average: Share = 0.999


@dataclass(frozen=True, slots=True)
class SoupConfig:
    """Weights of the same shape that the finished ones are averaged with, and their share."""

    checkpoint: str
    share: Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training run; units and reasons of each key stand in configs/train.yaml."""

    __pydantic_config__ = STRICT

    output: str
    start: StartConfig
    phases: tuple[PhaseConfig, ...]
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    soup: tuple[SoupConfig, ...] = ()
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    seed: NotNegative = 0
    checkpoint_steps: AtLeast1 = 200
    validation_steps: AtLeast1 = 400
    final_videos: NotNegative = 40
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"phases: named {names}; wanted at least one, each with its own name")
        long = [phase.name for phase in self.phases if phase.frames > self.data.frames]
        if long:
            raise ValueError(f"phases {long}: more frames than data.frames ({self.data.frames})")
        others = sum(part.share for part in self.soup)
        if others >= 1:
            raise ValueError(
                f"soup: the shares sum to {others:g}; wanted less than 1, the rest is this run's"
            )
