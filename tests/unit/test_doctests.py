"""The examples in the docstrings of modules that think."""

import doctest
import importlib

import pytest

MODULES = [
    "units",
    "workload",
    "layout.attention",
    "layout.named",
    "layout.redistribution",
    "layout.sharding",
    "cost.arithmetic",
    "partition.stage",
    "serve.pages",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"alpage.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
