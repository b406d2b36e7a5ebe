"""alpage, in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from alpage import LLM, BeamSearchParams, SamplingParams
from benchmarks.peers.drivers.driver import Driver, Request, Task, main


@final
class Alpage(Driver):
    """alpage."""

    def __init__(self, task: Task) -> None:
        weights, _, has_small_kv = task.weights.partition("+")
        self._llm = LLM(
            Path(task.model),
            dtype="bfloat16",
            quantization=None if weights == "bfloat16" else weights,
            kv_dtype="int8" if has_small_kv else None,
            kv_memory="1GiB",
        )

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        outputs = self._llm.generate(
            [request.prompt for request in requests], [_params(request) for request in requests]
        )
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        for chunk in self._llm.stream(request.prompt, _params(request)):
            for _ in chunk.token_ids:
                on_token()


def _params(request: Request) -> SamplingParams | BeamSearchParams:
    if request.beam_width is not None:
        return BeamSearchParams(
            beam_width=request.beam_width, max_tokens=request.output_tokens, ignore_eos=True
        )
    return SamplingParams(
        n=request.n,
        temperature=1 if request.n > 1 else 0,
        max_tokens=request.output_tokens,
        ignore_eos=True,
    )


if __name__ == "__main__":
    main(Alpage)
