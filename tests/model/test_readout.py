"""Which rows of what the blocks gave the vocabulary is multiplied with."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from alpage.partition import REPLICATED
from alpage.serve.batch import Row
from alpage.serve.readout import Hidden

ROW = Row(
    request_id="r", slot=0, index=0, start=4, tokens=(7,), page_start=0, pages=(), num_draws=1
)


class Ranks:
    """Two ranks have half of the tokens each; rows come from both."""

    def __init__(self, others_RD):
        self.others_RD = others_RD

    def rows(self, x_TD, places_R):
        return torch.cat([x_TD, self.others_RD])[places_R]


def hidden(sharder, x_RD, rows, lasts):
    return Hidden(rows, lasts, SimpleNamespace(sharder=sharder, logits=lambda x: x), x_RD)


@pytest.mark.parametrize("places", [[1, 2], [0, 3], [0, 1, 2, 3], [2]])
def test_rows_come_from_all_ranks_however_many_are_wanted(places):
    whole_TD = torch.randn(4, 3)
    found = hidden(Ranks(whole_TD[2:]), whole_TD[:2], [ROW] * 4, range(4)).logits(places)
    assert torch.equal(found, whole_TD[places])


@pytest.mark.parametrize("places", [[0, 1, 2], [1], [0, 2]])
def test_rows_of_one_device(places):
    x_RD = torch.randn(3, 2)
    found = hidden(REPLICATED, x_RD, [ROW] * 3, range(3)).logits(places)
    assert torch.equal(found, x_RD[places])


def test_places_count_what_is_kept():
    several = dataclasses.replace(ROW, tokens=(1, 2, 3), prompt_targets=(2, 3), num_draws=0)
    unfinished = dataclasses.replace(ROW, tokens=(1, 2), num_draws=0)
    rows = [ROW, unfinished, several, ROW]
    found = hidden(REPLICATED, torch.zeros(5, 1), rows, [0, 0, 3, 4])
    assert found.drawing() == ([0, 3], [0, 4])
    assert list(found.scored()) == [(2, range(1, 3))]
