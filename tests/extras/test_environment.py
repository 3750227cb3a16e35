import importlib.metadata

import pytest
from packaging.requirements import Requirement

from tests.extras.environment import requirements

pytestmark = pytest.mark.extras


@pytest.mark.parametrize("requirement", [Requirement(each) for each in requirements()], ids=str)
def test_what_an_extra_asks_for_is_there(requirement: Requirement) -> None:
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name))
