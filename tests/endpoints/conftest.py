"""What the tests of endpoints share."""

import pytest

from lmc.endpoints.base import Ingredients
from tests.endpoints.small import convnet, data, sgd


@pytest.fixture
def ingredients() -> Ingredients:
    return Ingredients(convnet, data(), sgd(), (5, 7))
