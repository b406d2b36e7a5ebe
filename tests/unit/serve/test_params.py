import math

import pytest

from alpage.errors import InvalidValue
from alpage.serve.params import BeamSearchParams, SamplingParams

BAD_SAMPLING = [
    ("n", 0),
    ("n", 65),
    ("n", 1.5),
    ("n", True),
    ("best_of", 0),
    ("max_tokens", -1),
    ("min_tokens", -1),
    ("min_tokens", 257),
    ("temperature", -0.1),
    ("temperature", 1e-38),
    ("top_k", 2**31),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_k", -2),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 1e-40),
    ("seed", 2**64),
    ("stop", 5),
    ("stop", {"a": 1}),
    ("stop_token_ids", {1: 2}),
    ("logit_bias", [1]),
    ("temperature", 10**400),
    ("max_tokens", 10**400),
    ("ignore_eos", "no"),
    ("stop", [""]),
    ("stop", ["x"] * 17),
    ("stop", ["x" * 1025]),
    ("stop_token_ids", [-1]),
    ("logprobs", -1),
    ("logprobs", 65),
    ("prompt_logprobs", 65),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", dict.fromkeys(range(1025), 1.0)),
]


@pytest.mark.parametrize(("name", "value"), BAD_SAMPLING)
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InvalidValue) as refusal:
        SamplingParams(**{name: value})
    assert name in refusal.value.field
    assert refusal.value.limit
    assert refusal.value.remedy


def test_none_is_empty_as_in_vllm():
    params = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None)
    assert params.stop_strings == ()
    BeamSearchParams(beam_width=2, stop_token_ids=None)


BAD_BEAMS = [
    {"beam_width": 2, "early_stopping": 1},
    {"beam_width": 0},
    {"beam_width": 65},
    {"beam_width": 2, "n": 3},
    {"beam_width": 2, "length_penalty": math.nan},
    {"beam_width": 2, "early_stopping": "always"},
    {"beam_width": 2, "max_tokens": 0},
]


@pytest.mark.parametrize("values", BAD_BEAMS)
def test_beams_out_of_range_are_refused(values):
    with pytest.raises(InvalidValue):
        BeamSearchParams(**values)


def test_what_vllm_users_write_is_understood():
    params = SamplingParams(n=2, best_of=4, top_k=-1, stop="x", seed=-3, max_tokens=None)
    assert params.num_sequences == 4
    assert params.stop_strings == ("x",)
