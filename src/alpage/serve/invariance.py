"""Invariance: whether a request gets the same bits in any company, tried out before it is promised.

What decides is which kernels a machine has: libraries choose other ones, with other orders of sums,
for other numbers of rows.
"""

from collections.abc import Sequence

from alpage.errors import Unsupported
from alpage.serve.engine import Engine
from alpage.serve.outputs import RequestOutput
from alpage.serve.params import SamplingParams

# Prompts of odd lengths: alone they are steps of few tokens, together one of many.
_LENGTHS = (1, 3, 19, 70, 33)
_NUM_TOKENS = 4
_STEPS_PER_VOCABULARY = 61


def check_invariance(engine: Engine) -> None:
    """Run a few requests alone and together.

    Args:
        engine: has nothing to do, and has forgotten it all afterwards.

    Raises:
        Unsupported: a token or the bits of a log-probability differ.
    """
    limits = engine.limits
    step = max(1, limits.vocab_size // _STEPS_PER_VOCABULARY)
    lengths = [n for n in _LENGTHS if n + _NUM_TOKENS <= limits.max_model_len]
    prompts = [
        [(7 + step * (i + length)) % limits.vocab_size for i in range(length)]
        for length in lengths[: limits.max_num_seqs]
    ]
    numbered = list(enumerate(prompts))
    alone = [output for one in numbered for output in _run(engine, [one])]
    together = _run(engine, numbered)
    if [_bits(output) for output in alone] != [_bits(output) for output in together]:
        profile = engine.runner.profile
        raise Unsupported(
            field="deterministic",
            value=True,
            limit=f"a request alone and in a batch gave other bits on this machine in "
            f"{profile.dtype}, for its kernels depend on the number of rows",
            remedy='Use dtype="bfloat16" on a CPU with AVX-512 and bf16, or deterministic=False',
        )


def _run(engine: Engine, prompts: Sequence[tuple[int, Sequence[int]]]) -> list[RequestOutput]:
    requests = []
    for number, prompt in prompts:
        params = SamplingParams(
            temperature=number % 2, seed=number, max_tokens=_NUM_TOKENS, ignore_eos=True, logprobs=2
        )
        requests.append(engine.add(prompt, params))
    while engine.has_unfinished:
        engine.step()
    engine.scheduler.forget_prefixes()
    return [request.output() for request in requests]


def _bits(output: RequestOutput) -> tuple[object, ...]:
    (choice,) = output.outputs
    assert choice.logprobs is not None, "they were asked for"
    logprobs = [{token: one.logprob for token, one in entry.items()} for entry in choice.logprobs]
    return tuple(choice.token_ids), logprobs
