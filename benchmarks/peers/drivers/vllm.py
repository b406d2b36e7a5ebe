"""vLLM for CPUs, compiled, its engine driven from this process."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import final

from vllm import LLM, SamplingParams
from vllm.sampling_params import BeamSearchParams

from benchmarks.peers.drivers.driver import Driver, Request, Task, main


@final
class Vllm(Driver):
    """vLLM."""

    def __init__(self, task: Task) -> None:
        self._llm = LLM(
            task.model,
            dtype=task.weights,
            max_model_len=2048,
            max_num_seqs=128,
        )
        self._ids = map(str, count())

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        prompts = [{"prompt_token_ids": request.prompt} for request in requests]
        width = requests[0].beam_width
        if width is not None:
            params = BeamSearchParams(
                beam_width=width, max_tokens=requests[0].output_tokens, ignore_eos=True
            )
            found = self._llm.beam_search(prompts, params, use_tqdm=False)
            return sum(
                len(sequence.tokens) - len(request.prompt)
                for request, output in zip(requests, found, strict=True)
                for sequence in output.sequences
            )
        each = [_params(request) for request in requests]
        outputs = self._llm.generate(prompts, each, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        engine = self._llm.llm_engine
        prompt = {"prompt_token_ids": request.prompt}
        engine.add_request(next(self._ids), prompt, _params(request))
        num_seen = 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                num_tokens = len(output.outputs[0].token_ids)
                for _ in range(num_tokens - num_seen):
                    on_token()
                num_seen = num_tokens


def _params(request: Request) -> SamplingParams:
    return SamplingParams(
        n=request.n,
        temperature=1 if request.n > 1 else 0,
        max_tokens=request.output_tokens,
        ignore_eos=True,
        detokenize=False,
    )


if __name__ == "__main__":
    main(Vllm)
