"""CTranslate2: beam search, in this process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import ctranslate2

from benchmarks.peers.drivers.driver import Driver, Request, Task, main


@final
class CTranslate2(Driver):
    """CTranslate2."""

    def __init__(self, task: Task) -> None:
        self._generator = ctranslate2.Generator(
            task.model, compute_type=task.weights, intra_threads=task.threads
        )
        text = Path(task.model, "vocabulary.json").read_text(encoding="utf-8")
        self._vocabulary: list[str] = json.loads(text)

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        first = requests[0]
        width = first.beam_width or 1
        found = self._generator.generate_batch(
            [self._words(request) for request in requests],
            beam_size=width,
            num_hypotheses=width,
            max_length=first.output_tokens,
            min_length=first.output_tokens,
            include_prompt_in_result=False,
        )
        return sum(len(tokens) for result in found for tokens in result.sequences_ids)

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        for _ in self._generator.generate_tokens(
            self._words(request), max_length=request.output_tokens, min_length=request.output_tokens
        ):
            on_token()

    def _words(self, request: Request) -> list[str]:
        return [self._vocabulary[token] for token in request.prompt]


if __name__ == "__main__":
    main(CTranslate2)
