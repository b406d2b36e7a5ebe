"""OpenVINO GenAI: its continuous batching pipeline, in this process."""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.drivers.driver import Driver, Request, Task, main

_CACHE_GIB = 1


@final
class OpenVino(Driver):
    """OpenVINO GenAI."""

    def __init__(self, task: Task) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": task.threads}
        if task.weights == "bfloat16":
            # Keys and values of 8 bits are its default.
            properties["KV_CACHE_PRECISION"] = "bf16"
        self._pipe = openvino_genai.ContinuousBatchingPipeline(
            task.model, scheduler, "CPU", properties
        )
        self._num_requests = 0

    def batch(self, requests: Sequence[Request]) -> int:
        """Answer requests that are all there at once."""
        prompts = [_tensor(request) for request in requests]
        found = self._pipe.generate(prompts, [_config(request) for request in requests])
        return sum(len(tokens) for result in found for tokens in result.m_generation_ids)

    def stream(self, request: Request, on_token: Callable[[], None]) -> None:
        """Answer one request."""
        self._num_requests += 1
        prompt = _tensor(request)
        handle = self._pipe.add_request(self._num_requests, prompt, _config(request))
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            while handle.can_read():
                for output in handle.read().values():
                    for _ in output.generated_ids:
                        on_token()


def _tensor(request: Request) -> openvino.Tensor:
    return openvino.Tensor(np.array([request.prompt], dtype=np.int64))


def _config(request: Request) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = request.output_tokens
    config.ignore_eos = True
    if request.n > 1:
        config.do_sample = True
        config.temperature = 1.0
        config.num_return_sequences = request.n
    if request.beam_width is not None:
        config.num_beams = config.num_return_sequences = request.beam_width
    return config


if __name__ == "__main__":
    main(OpenVino)
