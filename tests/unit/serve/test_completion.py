from hypothesis import given
from hypothesis import strategies as st

from alpage.serve.completion import Completion, Ending
from alpage.serve.params import SamplingParams
from test_detokenize import Bytes

EOS = 256


def complete(text, params, *, eos=True, max_tokens=1000):
    """Push a text's bytes until it ends; return the completion and its chunks."""
    ending = Ending(
        eos_ids=frozenset({EOS}), stop_ids=frozenset(params.stop_token_ids), max_tokens=max_tokens
    )
    completion = Completion(0, params, ending, Bytes())
    chunks = []
    for token in [*text.encode(), *([EOS] if eos else [])]:
        completion.push(token, None)
        chunks.append(completion.take_chunk())
        if completion.finish_reason:
            break
    return completion, chunks


def oracle(text, stops, *, include):
    """The text up to the stop string that is complete first, the earliest of those."""
    for end in range(len(text) + 1):
        starts = [text.find(stop) for stop in stops if stop in text[:end]]
        if starts:
            start = min(starts)
            stop = next(s for s in stops if text[:end].find(s) == start)
            return text[: start + len(stop)] if include else text[:start]
    return text


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3, unique=True),
    st.booleans(),
)
def test_stop_strings_cut_the_text_and_never_show_in_a_stream(text, stops, include):
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    completion, chunks = complete(text, params)
    expected = oracle(text, stops, include=include)
    assert completion.output(0).text == expected
    assert "".join(chunk.text for chunk in chunks) == expected
    is_cut = any(stop in text for stop in stops)
    assert (completion.output(0).stop_reason in stops) == is_cut


@given(st.text(max_size=20))
def test_streamed_text_is_the_text(text):
    completion, chunks = complete(text, SamplingParams())
    assert "".join(chunk.text for chunk in chunks) == text == completion.output(0).text
    assert completion.finish_reason == "stop"
    assert completion.output(0).stop_reason is None


def test_length_ends_it_and_flushes_half_a_character():
    completion, chunks = complete("é", SamplingParams(), max_tokens=1)
    assert completion.finish_reason == "length"
    assert "".join(chunk.text for chunk in chunks) == "\ufffd"


def test_stop_tokens_are_named_and_left_out_of_the_text():
    completion, _ = complete("abc", SamplingParams(stop_token_ids=[ord("b")]))
    output = completion.output(0)
    assert (output.text, output.stop_reason, list(output.token_ids)) == ("a", ord("b"), [97, 98])


def test_a_stop_string_at_the_last_token_wins_over_length():
    completion, _ = complete("abc", SamplingParams(stop="c"), max_tokens=3)
    assert (completion.finish_reason, completion.output(0).text) == ("stop", "ab")


def test_abort_keeps_what_there_is():
    completion, _ = complete("abc", SamplingParams(), eos=False)
    completion.end("abort")
    assert (completion.output(0).text, completion.output(0).finish_reason) == ("abc", "abort")
