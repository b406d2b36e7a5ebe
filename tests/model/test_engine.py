"""The engine against transformers' generate, and against itself on every other path."""

import random
import shutil
from unittest.mock import Mock

import pytest
import torch

from alpage import LLM, BeamSearchParams, SamplingParams
from alpage.errors import BadCheckpoint, InvalidValue, OutOfMemory
from tiny_llama import VOCAB_SIZE, make_tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=30)
NUM_PROMPTS = 16
# 12 KiB a page: a pool so small that requests must leave it and come back.
TIGHT = {"kv_memory": "256KiB", "max_num_seqs": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    return path, make_tiny_llama(path)


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(0)
    return [
        [draw.randrange(6, VOCAB_SIZE) for _ in range(draw.randint(1, 90))]
        for _ in range(NUM_PROMPTS)
    ]


@pytest.fixture(scope="module")
def expected(checkpoint, prompts):
    """Greedy continuations by transformers, one prompt at a time."""
    _, oracle = checkpoint
    return [
        oracle.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


def make(checkpoint, **options):
    options = {"dtype": "float32", "device": "cpu", "kv_memory": "64MiB"} | options
    return LLM(checkpoint[0], notify=lambda line: None, **options)


def tokens(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


PATHS = {
    "reference attention": {"attention_backend": "reference"},
    "sdpa attention": {"attention_backend": "sdpa"},
    "small chunks": {"max_num_seqs": 8, "max_num_batched_tokens": 8},
    "no prefix cache": {"has_prefix_cache": False},
    "pages of 8": {"page_size": 8},
    "pages of 64": {"page_size": 64},
    "swapped": TIGHT | {"swap_memory": "4MiB"},
    "recomputed": TIGHT | {"swap_memory": 0},
    "recomputed in chunks": TIGHT | {"swap_memory": 0, "max_num_batched_tokens": 16},
    "one at a time": {"max_num_seqs": 1},
    "no time for prompts": {"target_itl_s": 1e-6, "max_num_seqs": 8},
}


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_greedy_tokens_equal_transformers_on_every_path(options, checkpoint, prompts, expected):
    llm = make(checkpoint, **options)
    assert tokens(llm.generate(prompts, GREEDY)) == expected
    scheduler = llm.engine.scheduler
    if "swap_memory" in options:
        assert scheduler.num_preemptions > 0
        assert (scheduler.memories[0].num_swapped_pages > 0) == (options["swap_memory"] != 0)
    assert scheduler.memories[0].pool.num_held == 0


def test_prefix_hits_change_nothing(checkpoint, prompts, expected):
    llm = make(checkpoint)
    llm.generate(prompts, GREEDY)
    outputs = llm.generate(prompts, GREEDY)
    assert tokens(outputs) == expected
    # All but the last token of every prompt is cached, to the token.
    assert [o.metrics.cached_tokens for o in outputs] == [len(p) - 1 for p in prompts]


def test_a_conversation_reuses_its_partly_filled_page(checkpoint):
    llm = make(checkpoint)
    first = llm.generate([6] * 21, GREEDY)[0]
    history = [*first.prompt_token_ids, *first.outputs[0].token_ids]
    second = llm.generate([*history, 7, 8], GREEDY)[0]
    # The last token that was drawn was never computed.
    assert second.metrics.cached_tokens == len(history) - 1
    assert tokens([second]) == tokens(make(checkpoint).generate([*history, 7, 8], GREEDY))


BEAMS = [(4, 1.0, False), (3, 0.5, True), (5, 2.0, "never"), (2, 0.0, False), (4, -1.0, "never")]


@pytest.mark.parametrize(("width", "length_penalty", "early_stopping"), BEAMS)
def test_beams_and_scores_equal_transformers(
    width, length_penalty, early_stopping, checkpoint, prompts
):
    _, oracle = checkpoint
    llm = make(checkpoint)
    params = BeamSearchParams(
        beam_width=width,
        max_tokens=20,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    for prompt, output in zip(prompts[:6], llm.generate(prompts[:6], params), strict=True):
        found = oracle.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for beam, sequence, score in zip(
            output.outputs, found.sequences, found.sequences_scores, strict=True
        ):
            ours = list(beam.token_ids)
            theirs = sequence[len(prompt) :].tolist()
            assert theirs[: len(ours)] == ours
            assert set(theirs[len(ours) :]) <= {2}  # padding
            assert beam.score == pytest.approx(score.item(), rel=1e-4)


@pytest.mark.parametrize(
    "options", [{}, TIGHT | {"swap_memory": "4MiB"}, TIGHT | {"swap_memory": 0}]
)
def test_beams_do_not_depend_on_memory_or_company(options, checkpoint, prompts):
    params = BeamSearchParams(beam_width=4, max_tokens=20)
    alone = [make(checkpoint).generate(prompt, params)[0] for prompt in prompts[:6]]
    together = make(checkpoint, **options).generate(prompts[:6], params)
    for one, other in zip(alone, together, strict=True):
        assert [b.token_ids for b in one.outputs] == [b.token_ids for b in other.outputs]


SAMPLED = SamplingParams(n=3, seed=7, top_p=0.9, top_k=50, max_tokens=20)


@pytest.mark.parametrize(
    "options", [{}, TIGHT | {"swap_memory": "4MiB"}, TIGHT | {"swap_memory": 0}]
)
def test_a_seed_gives_the_same_tokens_in_any_batch(options, checkpoint, prompts):
    alone = make(checkpoint).generate(prompts[0], SAMPLED)[0].outputs
    together = make(checkpoint, **options).generate(prompts[::-1], SAMPLED)[-1].outputs
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]
    assert len({c.token_ids for c in alone}) == 3


def test_logprobs_are_the_models(checkpoint, prompts):
    _, oracle = checkpoint
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2)
    llm = make(checkpoint, max_num_batched_tokens=16, max_num_seqs=2)
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        whole = [*prompt, *output.outputs[0].token_ids]
        with torch.no_grad():
            expected_LV = oracle(torch.tensor([whole])).logits[0].log_softmax(-1)
        assert output.prompt_logprobs[0] is None
        found = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        wanted = [2] * (len(prompt) - 1) + [3] * len(output.outputs[0].token_ids)
        for position, (entry, num_top) in enumerate(zip(found, wanted, strict=True)):
            token = whole[position + 1]
            values_V = expected_LV[position]
            assert entry[token].logprob == pytest.approx(values_V[token].item(), abs=1e-4)
            assert entry[token].rank == 1 + (values_V > values_V[token]).sum()
            assert set(values_V.topk(num_top).indices.tolist()) <= set(entry)
        total = sum(
            e[t].logprob
            for e, t in zip(output.outputs[0].logprobs, whole[len(prompt) :], strict=True)
        )
        assert output.outputs[0].cumulative_logprob == pytest.approx(total)


def test_best_of_returns_the_best_mean_logprobs(checkpoint, prompts):
    llm = make(checkpoint)
    every = SamplingParams(n=6, seed=3, max_tokens=10, logprobs=0)
    best = SamplingParams(n=2, best_of=6, seed=3, max_tokens=10)
    drawn = llm.generate(prompts[0], every)[0].outputs
    drawn = sorted(drawn, key=lambda c: -c.cumulative_logprob / len(c.token_ids))
    found = llm.generate(prompts[0], best)[0].outputs
    assert [c.token_ids for c in found] == [c.token_ids for c in drawn[:2]]
    assert [c.index for c in found] == [0, 1]


def test_stream_gives_the_whole_text_in_pieces(checkpoint):
    llm = make(checkpoint)
    params = SamplingParams(n=2, seed=5, max_tokens=40)
    whole = llm.generate("Hello, wörld", params)[0].outputs
    chunks = list(llm.stream("Hello, wörld", params))
    for completion in whole:
        own = [chunk for chunk in chunks if chunk.index == completion.index]
        assert "".join(chunk.text for chunk in own) == completion.text
        assert [t for chunk in own for t in chunk.token_ids] == list(completion.token_ids)
        assert [chunk.finish_reason for chunk in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == completion.finish_reason
    assert len(chunks) > 20


def test_a_stream_ends_with_the_whole_output(checkpoint):
    llm = make(checkpoint)
    stream = llm.stream([6, 7, 8], GREEDY)
    assert stream.output is None
    list(stream)
    assert stream.output.outputs == llm.generate([6, 7, 8], GREEDY)[0].outputs


def test_streams_do_not_lose_what_another_call_stepped(checkpoint):
    llm = make(checkpoint)
    one = llm.stream([6, 7, 8], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    chunks = [next(one)]
    other = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    list(llm.stream([9, 10], other))
    chunks += one
    assert sum(len(chunk.token_ids) for chunk in chunks) == 6
    assert chunks[-1].finish_reason == "length"


def test_a_stream_left_early_frees_its_pages(checkpoint):
    llm = make(checkpoint)
    stream = llm.stream([6, 7, 8], GREEDY)
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished
    assert stream.output.outputs[0].finish_reason == "abort"
    assert [chunk.finish_reason for chunk in stream] == ["abort"]
    # One that is dropped before its first chunk, too.
    llm.stream([6, 7, 8], GREEDY)
    assert not llm.engine.has_unfinished
    assert llm.engine.scheduler.memories[0].pool.num_held == 0


def test_stop_strings_end_the_text_wherever_they_fall(checkpoint):
    llm = make(checkpoint)
    free = llm.generate("abc", SamplingParams(seed=2, max_tokens=40, ignore_eos=True))[0].outputs[0]
    stop = free.text[10:13]
    for include in (False, True):
        params = SamplingParams(
            seed=2, max_tokens=40, ignore_eos=True, stop=[stop], include_stop_str_in_output=include
        )
        cut = llm.generate("abc", params)[0].outputs[0]
        place = free.text.find(stop)
        assert cut.text == free.text[: place + (len(stop) if include else 0)]
        assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
        streamed = "".join(chunk.text for chunk in llm.stream("abc", params))
        assert streamed == cut.text


def test_stop_tokens_min_tokens_and_bias(checkpoint, prompts):
    llm = make(checkpoint)
    free = llm.generate(prompts[1], GREEDY)[0].outputs[0].token_ids
    stop = free[4]
    first = free.index(stop)
    ended = SamplingParams(temperature=0, stop_token_ids=[stop], max_tokens=30)
    cut = llm.generate(prompts[1], ended)[0]
    assert list(cut.outputs[0].token_ids) == list(free[: first + 1])
    assert cut.outputs[0].stop_reason == stop
    later = SamplingParams(temperature=0, stop_token_ids=[stop], min_tokens=10, max_tokens=30)
    assert len(llm.generate(prompts[1], later)[0].outputs[0].token_ids) >= 10
    banned = SamplingParams(temperature=0, max_tokens=30, logit_bias={stop: -100.0})
    assert stop not in llm.generate(prompts[1], banned)[0].outputs[0].token_ids
    forced = SamplingParams(temperature=0, max_tokens=3, logit_bias={9: 100.0})
    assert list(llm.generate(prompts[1], forced)[0].outputs[0].token_ids) == [9, 9, 9]


REFUSED = [
    (dict(prompts=[[]]), InvalidValue, "at least one token"),
    (dict(prompts=[[VOCAB_SIZE]]), InvalidValue, "299"),
    (dict(prompts=[[-1]]), InvalidValue, "vocabulary"),
    (dict(prompts=[[6] * 257]), InvalidValue, "256"),
    (dict(prompts=[[6] * 200], sampling_params=SamplingParams(max_tokens=57)), InvalidValue, "256"),
    (
        dict(prompts=[[6]], sampling_params=SamplingParams(max_tokens=5, n=20)),
        InvalidValue,
        "max_num_seqs",
    ),
    (
        dict(prompts=[[6]], sampling_params=SamplingParams(max_tokens=5, logit_bias={300: 1.0})),
        InvalidValue,
        "299",
    ),
    (dict(prompts=[[6], [7]], sampling_params=[SamplingParams()]), InvalidValue, "2, one for each"),
]


REFUSED += [
    (dict(prompts=[[6]], sampling_params=GREEDY, priority=value), InvalidValue, "priority")
    for value in (1001, 0.5, float("nan"), True)
]


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e9, "50ms", True])
def test_a_target_between_tokens_is_seconds(value, checkpoint):
    with pytest.raises(InvalidValue, match="target_itl_s"):
        make(checkpoint, target_itl_s=value)


def test_prompts_wait_for_a_target_between_tokens(checkpoint):
    llm = make(checkpoint, target_itl_s=1e-6)
    sizes = []
    reader = llm.stream([6], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    next(reader)
    for first in (7, 8):
        prompt = [first] * 100
        request = llm.engine.intake.request(
            prompt, GREEDY, prompt=None, request_id=None, priority=0, salt=""
        )
        llm.engine.take(request)
        for _ in range(4):
            llm.engine.step(lambda batch, _: sizes.append(batch.num_tokens))
    # The first step that makes somebody wait is the last that does.
    assert sizes[:3] == [101, 2, 2]
    assert sizes[4:6] == [18, 18]


REFUSED += [
    (dict(prompts=prompts, sampling_params=GREEDY), InvalidValue, "prompt")
    for prompts in (
        None,
        5,
        b"ab",
        bytearray(b"ab"),
        [None],
        [6, True],
        [[6.0]],
        torch.tensor([6]),
        {},
        {"prompt": "a", "salt": "b"},
        {"prompt": None},
        {"prompt_token_ids": "ab"},
        [{"prompt_token_ids": [True]}],
    )
]
REFUSED += [
    (dict(prompts=[[6]], sampling_params=value), InvalidValue, "sampling_params")
    for value in ({"temperature": 0}, [{"temperature": 0}], 0, SamplingParams)
]


@pytest.mark.parametrize(("call", "error", "limit"), REFUSED)
def test_bad_requests_are_refused_whole(call, error, limit, checkpoint):
    llm = make(checkpoint, max_num_seqs=16)
    with pytest.raises(error, match=limit):
        llm.generate(**call)
    assert not llm.engine.has_unfinished
    assert len(llm.generate([[6]], SamplingParams(max_tokens=2))) == 1


def test_prompts_in_every_form(checkpoint):
    llm = make(checkpoint)
    expected = tokens(llm.generate(["abc"], GREEDY)) * 2
    ids = llm.tokenizer.encode("abc", add_special_tokens=True)
    for prompts in (
        ["abc", ids],
        [{"prompt": "abc"}, {"prompt_token_ids": ids}],
        ("abc", tuple(ids)),
        iter(["abc", ids]),
    ):
        assert tokens(llm.generate(prompts, [GREEDY, GREEDY])) == expected
    for prompt in ("abc", ids, {"prompt": "abc"}, {"prompt_token_ids": ids}):
        assert tokens(llm.generate(prompt, GREEDY)) == expected[:1]
        assert next(llm.stream(prompt, GREEDY)).token_ids


@pytest.mark.parametrize("messages", [None, 5, [], {"role": "user"}, {1}, "hello", [[]], [5]])
def test_what_is_no_conversation(messages, checkpoint):
    with pytest.raises(InvalidValue, match="messages"):
        make(checkpoint).chat(messages, GREEDY)


def test_a_request_that_could_never_finish_is_refused(checkpoint):
    llm = make(checkpoint, kv_memory="256KiB")
    with pytest.raises(OutOfMemory, match="kv_memory"):
        llm.generate([6], SamplingParams(n=8, max_tokens=200))


def test_small_memory_limits_the_length_and_says_so(checkpoint):
    lines = []
    llm = LLM(checkpoint[0], dtype="float32", kv_memory="64KiB", notify=lines.append)
    assert len(lines) == 1
    assert "112 tokens" in lines[0]
    with pytest.raises(InvalidValue, match="112"):
        llm.generate([[6] * 112], SamplingParams(max_tokens=1))
    with pytest.raises(OutOfMemory, match="one request"):
        LLM(checkpoint[0], dtype="float32", kv_memory="8KiB")


def test_more_memory_than_there_is_is_refused_at_once(checkpoint):
    with pytest.raises(OutOfMemory, match="free"):
        make(checkpoint, kv_memory="100TiB")
    with pytest.raises(OutOfMemory, match="swap_memory"):
        make(checkpoint, swap_memory="100TiB")


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr("alpage.serve.machine.available_memory_bytes", lambda: 10_000)
    monkeypatch.setattr("alpage.serve.build.load", Mock(side_effect=AssertionError))
    with pytest.raises(OutOfMemory, match=r"weights.* do not fit into the 9.8 KiB"):
        make(checkpoint)


def test_an_end_of_text_that_the_model_cannot_say(checkpoint, tmp_path):
    shutil.copytree(checkpoint[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 300]}')
    with pytest.raises(BadCheckpoint, match="eos_token_id=300"):
        make((tmp_path,))


BAD_OPTIONS = [
    ({"dtyp": "float32"}, "dtyp"),
    ({"dtype": "int3"}, "bfloat16"),
    ({"device": "tpu"}, "cuda"),
    ({"page_size": 12}, "multiple of 8"),
    ({"max_model_len": 257}, "256"),
    ({"kv_memory": "much"}, "kv_memory"),
    ({"attention_backend": "best"}, "sdpa"),
    ({"attention_backend": None}, "attention_backend"),
    ({"dtype": ["float32"]}, "dtype"),
    ({"kv_dtype": "int4"}, "kv_dtype"),
    ({"device": None}, "device"),
    ({"device": "cuda:" + "9" * 5000}, "device"),
    ({"kv_memory": b"1GiB"}, "kv_memory"),
    ({"swap_memory": torch.zeros(2)}, "swap_memory"),
    ({"has_prefix_cache": "no"}, "has_prefix_cache"),
    ({"max_num_seqs": 10**9}, "max_num_seqs"),
    ({"notify": 5}, "notify"),
    ({"model": None}, "model"),
    ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, "at least 8"),
]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
def test_bad_options_are_refused(options, named, checkpoint):
    with pytest.raises(InvalidValue, match=named):
        LLM(**{"model": checkpoint[0], "kv_memory": "1MiB", **options})


def test_prompt_logprobs_hold_few_rows_of_the_vocabulary(checkpoint, monkeypatch):
    llm = make(checkpoint)
    model = llm.engine.runner.views[0].model
    rows = []
    plain = model.logits

    def counted(x_RD):
        rows.append(len(x_RD))
        return plain(x_RD)

    monkeypatch.setattr(model, "logits", counted)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    output = llm.generate([[7] * 200], params)[0]
    assert len(output.prompt_logprobs) == 200
    assert max(rows) <= 64
    assert sum(rows) == 200


def test_prompt_logprobs_survive_preemption(checkpoint, prompts):
    params = SamplingParams(temperature=0, max_tokens=30, prompt_logprobs=1)
    alone = make(checkpoint).generate(prompts, params)
    tight = make(checkpoint, **TIGHT, swap_memory=0, max_num_batched_tokens=16)
    for one, other in zip(alone, tight.generate(prompts, params), strict=True):
        for entry, again in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert list(entry) == list(again)
            assert [e.logprob for e in entry.values()] == pytest.approx(
                [e.logprob for e in again.values()], abs=1e-4
            )
    assert tight.engine.scheduler.num_preemptions > 0


def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(checkpoint, monkeypatch):
    llm = make(checkpoint)
    expected = tokens(llm.generate([[6] * 40], GREEDY))
    model = llm.engine.runner.views[0].model
    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", lambda x_RD: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.generate([[6] * 40, [7] * 40], GREEDY)
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        patch.setattr(model, "logits", Mock(side_effect=error))
        with pytest.raises(OutOfMemory, match="max_num_batched_tokens"):
            llm.generate([[6] * 40], GREEDY)
    assert not llm.engine.has_unfinished
    assert llm.engine.scheduler.memories[0].pool.num_held == 0
    # Nothing that the failed step was to compute is believed.
    output = llm.generate([[7] * 40], GREEDY)[0]
    assert output.metrics.cached_tokens == 0
    assert tokens(llm.generate([[6] * 40], GREEDY)) == expected


def test_continuations_are_drawn_from_their_own_row_beside_beams(checkpoint):
    """As many draws as rows, but not one of each: three of one row, none of two beams'."""
    sampling = SamplingParams(temperature=0.01, seed=3, n=3, max_tokens=4)
    beams = BeamSearchParams(beam_width=2, max_tokens=4)
    llm = make(checkpoint)
    alone = llm.generate([[5, 6, 7]], sampling)[0]
    beside = llm.generate([[8, 9], [5, 6, 7], [3, 4]], [beams, sampling, beams])[1]
    assert [one.token_ids for one in beside.outputs] == [one.token_ids for one in alone.outputs]
