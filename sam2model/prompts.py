"""What a person said of one object on one frame. Knows nothing of models, files or tables."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


class PromptError(ValueError):
    """A prompt that cannot be used; the message says what, where, got and wanted."""


class PromptOutOfRange(PromptError):
    """A prompt outside the frame, the video or the span to be labelled."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Clicks, a box or a mask for one object on one frame, in source pixels after rotation.

    points_px: ((x, y), …), x right and y down, pixel centres at whole numbers.
    positive: one flag a point; True adds to the object, False takes away.
    box_xyxy_px: (x0, y0, x1, y1); may stand together with points.
    mask: (H, W) bool at the video's size; stands alone.
    Raises PromptError at construction for a prompt that no video could satisfy.
    """

    object_id: int
    frame_index: int
    points_px: tuple[tuple[float, float], ...] = ()
    positive: tuple[bool, ...] = ()
    box_xyxy_px: tuple[float, float, float, float] | None = None
    mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.object_id < 0:
            raise PromptError(f"object {self.object_id}: ids are 0 or more")
        if self.frame_index < 0:
            raise PromptError(f"{self.where}: frames are counted from 0")
        if len(self.points_px) != len(self.positive):
            raise PromptError(
                f"{self.where}: {len(self.points_px)} points but {len(self.positive)} signs; "
                "wanted one sign a point"
            )
        if not self.points_px and self.box_xyxy_px is None and self.mask is None:
            raise PromptError(f"{self.where}: empty; wanted points, a box or a mask")
        if self.mask is not None and (self.points_px or self.box_xyxy_px is not None):
            raise PromptError(f"{self.where}: a mask together with points or a box; wanted one")
        numbers = [*self.box_xyxy_px] if self.box_xyxy_px is not None else []
        numbers += [value for point in self.points_px for value in point]
        if not all(np.isfinite(numbers)):
            raise PromptError(f"{self.where}: coordinates must be finite, got {numbers}")
        if self.box_xyxy_px is not None:
            x0, y0, x1, y1 = self.box_xyxy_px
            if x1 <= x0 or y1 <= y0:
                raise PromptError(
                    f"{self.where}: box {self.box_xyxy_px}; wanted x0 < x1 and y0 < y1"
                )

    @property
    def where(self) -> str:
        """The prompt's place, for messages."""
        return f"prompt of object {self.object_id} on frame {self.frame_index}"

    def check_inside(self, num_frames: int | None, height: int, width: int) -> None:
        """Raise PromptOutOfRange unless the prompt lies in a video of this size.

        num_frames may be None when it is not yet known. A point lies inside when
        0 ≤ x < width and 0 ≤ y < height; a box may end at width or height.
        """
        if num_frames is not None and self.frame_index >= num_frames:
            raise PromptOutOfRange(f"{self.where}: the video has frames 0 to {num_frames - 1}")
        for x, y in self.points_px:
            if not (0 <= x < width and 0 <= y < height):
                raise PromptOutOfRange(
                    f"{self.where}: point ({x}, {y}) outside {width}×{height} px"
                )
        if self.box_xyxy_px is not None:
            x0, y0, x1, y1 = self.box_xyxy_px
            if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
                raise PromptOutOfRange(
                    f"{self.where}: box {self.box_xyxy_px} outside {width}×{height} px"
                )
        if self.mask is not None and self.mask.shape != (height, width):
            raise PromptOutOfRange(
                f"{self.where}: mask of {self.mask.shape} rows and columns; "
                f"wanted {(height, width)}"
            )
