"""What all endpoints that are trained from seeds ask of them."""

import pytest

from lmc.endpoints.trained import check_seeds
from lmc.errors import UserError


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "at least two seeds"),
        ([3], "at least two seeds"),
        ([1, 2, 1], "a seed is there twice"),
        ([0, -1], "a seed is negative"),
    ],
)
def test_seed_lists_that_make_no_path_are_refused(seeds: list[int], message: str):
    with pytest.raises(UserError, match=message):
        check_seeds(seeds)
