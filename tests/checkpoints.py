"""A checkpoint on disk that labels a frame in milliseconds. Its masks mean nothing."""

from pathlib import Path

from small_network import SIZE, small_network

from sam2model import Sam2VideoModel, Sam2VideoProcessor, Sam2VideoVideoProcessor


def small_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A folder as `from_pretrained` reads it: 64 px, random weights. Gives the folder back."""
    small_network(seed, Sam2VideoModel).save_pretrained(folder)
    Sam2VideoProcessor(Sam2VideoVideoProcessor(SIZE)).save_pretrained(folder)
    return folder
