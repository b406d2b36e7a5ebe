"""transformers: its continuous batching."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.drivers.driver import Driver, Request, Task, main

# 23 KB a token of SmolLM2-135M: about 1 GiB in pages of 256 tokens.
_NUM_PAGES = 176


@final
class Continuous(Driver):
    """transformers' manager of continuous batching."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        model = AutoModelForCausalLM.from_pretrained(
            task.model, dtype=getattr(torch, task.weights), attn_implementation="sdpa"
        ).eval()
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=_NUM_PAGES),
        )
        self._manager.start()

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        for request in requests:
            assert request.n == 1, "samples are not driven"
            self._manager.add_request(request.prompt, max_new_tokens=request.output_tokens)
        num_left, num_output = len(requests), 0
        while num_left:
            result = self._manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                num_left -= 1
                num_output += len(result.generated_tokens)
        return num_output

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        number = self._manager.add_request(
            request.prompt, max_new_tokens=request.output_tokens, streaming=True
        )
        num_seen = 0
        for result in self._manager.request_id_iter(number):
            assert result.error is None, result.error
            for _ in range(len(result.generated_tokens) - num_seen):
                on_token()
            num_seen = len(result.generated_tokens)

    def close(self) -> None:
        """End its thread."""
        self._manager.stop()


if __name__ == "__main__":
    main(Continuous)
