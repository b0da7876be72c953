"""Task names."""

import pytest

from ipt_fast import TASKS
from ipt_fast.tasks import get_task


def test_the_order_is_the_released_one():
    assert TASKS == ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")


@pytest.mark.parametrize(
    ("name", "kind", "scale", "sigma"),
    [("sr3", "sr", 3, 0), ("derain", "derain", 1, 0), ("denoise12.5", "denoise", 1, 12.5), ("deblur", "deblur", 1, 0)],
)
def test_names(name, kind, scale, sigma):
    task = get_task(name)
    assert (task.kind, task.scale, task.sigma) == (kind, scale, sigma)
    assert get_task(task) is task


@pytest.mark.parametrize("name", ["sr5", "denoise", "denoise0", "denoise-3", "rain", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="choose one of sr2"):
        get_task(name)
