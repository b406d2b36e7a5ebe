"""transformers: batches of 32 requests, sorted by length, each as long as its longest."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.drivers.driver import Driver, Request, Task, main

_BATCH = 32


@final
class Static(Driver):
    """transformers' `generate`."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            task.model, dtype=getattr(torch, task.weights)
        ).eval()

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        by_length = sorted(requests, key=lambda each: (each.output_tokens, len(each.prompt)))
        for start in range(0, len(by_length), _BATCH):
            self._generate(by_length[start : start + _BATCH])
        # A batch goes on for its longest; a request takes the tokens that it asked for.
        return sum(each.output_tokens * (each.beam_width or each.n) for each in requests)

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        self._generate([request], streamer=_Told(on_token))

    def _generate(self, requests: Sequence[Request], **options: object) -> None:
        longest = max(len(request.prompt) for request in requests)
        num_output = max(request.output_tokens for request in requests)
        ids = [[0] * (longest - len(one.prompt)) + one.prompt for one in requests]
        seen = [[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in requests]
        first = requests[0]
        width = first.beam_width or 1
        self._model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(seen),
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            do_sample=first.n > 1,
            num_beams=width,
            num_return_sequences=max(first.n, width),
            top_k=0,
            pad_token_id=0,
            **options,
        )


@final
class _Told:
    """A streamer of transformers: it is given the prompt first, and then tokens."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._has_prompt = False

    def put(self, tokens: torch.Tensor) -> None:  # noqa: ARG002 - its interface
        """Take tokens."""
        if self._has_prompt:
            self._on_token()
        self._has_prompt = True

    def end(self) -> None:
        """Take the end."""


if __name__ == "__main__":
    main(Static)
