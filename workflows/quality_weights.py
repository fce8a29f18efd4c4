"""Printed by tests/fit_quality.py."""

FRAME_BIAS = -8.850
FRAME_WEIGHTS = (
    0.300,  # score_drop
    0.347,  # score_low
    0.301,  # iou_low
    5.628,  # iou_drop
    3.293,  # unstable
    0.506,  # grown
    1.000,  # shrunk
    1.498,  # moved
    14.314,  # lost
    0.300,  # overlap
    8.907,  # overlap_rise
    10.967,  # disagreement
)
TRACK_BIAS = -8.912
TRACK_WEIGHTS = (
    0.712,  # worst frame
    0.300,  # second worst frame
    7.403,  # mean score_low
    11.587,  # mean iou_low
    18.378,  # mean unstable
    0.300,  # mean overlap
)
