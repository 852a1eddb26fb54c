"""One recipe of each function that makes some."""

import pytest

from parhelion.recipes.table import RECIPES


def one_of_each_maker(names, *, thorough=()):
    """The names of recipes as parameters; all but the first of each function that makes recipes are thorough.

    thorough: names that are, too, though they come first.
    """
    seen, parameters = set(), []
    for name in names:
        maker = RECIPES[name].make
        parameters.append(pytest.param(name, marks=[pytest.mark.thorough] if maker in seen or name in thorough else []))
        seen.add(maker)
    return parameters
