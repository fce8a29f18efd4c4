"""Printed by tests/fit_quality.py."""

FRAME_BIAS = -7.224
FRAME_WEIGHTS = (
    1.585,  # score_drop
    0.450,  # score_low
    1.346,  # iou_low
    2.737,  # iou_drop
    1.130,  # unstable
    0.672,  # grown
    0.000,  # shrunk
    0.368,  # moved
    1.985,  # lost
    1.708,  # overlap
    1.906,  # overlap_rise
    2.662,  # disagreement
)
TRACK_BIAS = -6.592
TRACK_WEIGHTS = (
    0.936,  # worst frame
    0.000,  # second worst frame
    0.697,  # mean score_low
    1.496,  # mean iou_low
    0.696,  # mean unstable
    3.088,  # mean overlap
)
