"""One recipe of each function that makes some."""

import pytest

from parhelion.recipes.table import RECIPES


def one_of_each_maker(names):
    """The names of recipes as parameters; all but the first of each function that makes recipes are thorough."""
    seen, parameters = set(), []
    for name in names:
        maker = RECIPES[name].make
        parameters.append(pytest.param(name, marks=[pytest.mark.thorough] if maker in seen else []))
        seen.add(maker)
    return parameters
