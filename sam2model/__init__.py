"""SAM 2 video segmentation: the model and its engine, nothing of Ray, storage or YAML.

One dimension key for every shape comment in this package:
B images, N objects, T frames, C channels, H W rows and columns of the coarsest features,
S side of the model's square image, L = H·W places, M remembered frames of one object,
P points or pointers, E pointer tokens, D channels of one head.
"""

from sam2model.checkpoint import CheckpointError
from sam2model.configuration import (
    ConfigurationError,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoPromptEncoderConfig,
    released_config,
)
from sam2model.frame_processing import Sam2VideoVideoProcessor
from sam2model.inference_session import Sam2VideoInferenceSession, SessionError
from sam2model.modeling import Sam2VideoModel, Sam2VideoSegmentationOutput
from sam2model.processing import Sam2VideoProcessor
from sam2model.prompts import Prompt, PromptError

__all__ = [
    "CheckpointError",
    "ConfigurationError",
    "Prompt",
    "PromptError",
    "Sam2VideoConfig",
    "Sam2VideoInferenceSession",
    "Sam2VideoMaskDecoderConfig",
    "Sam2VideoModel",
    "Sam2VideoProcessor",
    "Sam2VideoPromptEncoderConfig",
    "Sam2VideoSegmentationOutput",
    "Sam2VideoVideoProcessor",
    "SessionError",
    "released_config",
]
