"""The error tree: what its docstring draws, and what every message says."""

import re

import pytest

from alpage import errors
from alpage.errors import AlpageError, InvalidValue

LEAVES = AlpageError.__subclasses__()


@pytest.mark.parametrize("leaf", LEAVES)
def test_message_has_field_value_limit_and_remedy(leaf):
    error = leaf(field="top_p", value=1.5, limit="must be at most 1", remedy="Lower it")
    assert str(error) == "top_p=1.5: must be at most 1. Lower it."
    assert (error.field, error.value, error.limit, error.remedy) == (
        "top_p",
        1.5,
        "must be at most 1",
        "Lower it",
    )


def test_docstring_draws_the_tree():
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__)
    assert drawn == [leaf.__name__ for leaf in LEAVES]
    assert len(LEAVES) <= 6


def test_codes_are_names_for_machines():
    codes = [leaf.code for leaf in LEAVES]
    assert codes == [re.sub(r"(?<!^)(?=[A-Z])", "_", leaf.__name__).lower() for leaf in LEAVES]


def test_long_values_are_shortened():
    error = InvalidValue(field="prompt", value="x" * 10_000, limit="too long", remedy="Shorten it")
    assert len(str(error)) < 200
    assert "(10002 characters)" in str(error)
    assert len(error.value) == 10_000


def test_a_number_that_python_does_not_write_out():
    error = InvalidValue(field="n", value=10**5000, limit="too large", remedy="Lower it")
    assert str(error) == "n=<int>: too large. Lower it."


def test_invalid_values_are_value_errors():
    with pytest.raises(ValueError, match="too many"):
        raise InvalidValue(field="n", value=99, limit="too many", remedy="Ask for fewer")
