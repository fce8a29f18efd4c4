"""What a click costs beside the model; the figure itself is `maskmill bench`'s."""

import pytest

from workflows.benchmark_service import NoModelParts, through_service
from workflows.service_config import ServeConfig

pytest_plugins = ["local_ray"]


def test_what_is_not_measured_is_not_there() -> None:
    parts = NoModelParts()
    made = parts.refinements(ServeConfig(dataset="none"), with_engine=True)
    assert made.open("v").num_frames == 1
    with pytest.raises(NotImplementedError, match="commit_draft"):
        made.commit_draft("v", "d")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_click_passes_through_the_service(local_ray: None) -> None:
    row = through_service(clicks=40, warm_up=5)
    assert 0 < row["fastest_ms"] <= row["p50_ms"] <= row["p95_ms"]  # type: ignore[operator]
