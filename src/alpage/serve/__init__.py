"""Serve: requests in, tokens out, over paged memory.

A step is three verbs: the scheduler decides it (pure), the runner makes it (tensors), the engine
commits what was drawn. May import: models, ops, hardware and the base modules.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.serve.config import EngineConfig
    from alpage.serve.engine import Engine
    from alpage.serve.guide import Guide
    from alpage.serve.llm import LLM
    from alpage.serve.outputs import CompletionOutput, RequestOutput, StreamChunk
    from alpage.serve.params import BeamSearchParams, SamplingParams

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "Guide",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
]

__getattr__ = lazy_names(
    __name__,
    {
        "LLM": "llm",
        "BeamSearchParams": "params",
        "CompletionOutput": "outputs",
        "Engine": "engine",
        "EngineConfig": "config",
        "Guide": "guide",
        "RequestOutput": "outputs",
        "SamplingParams": "params",
        "StreamChunk": "outputs",
    },
)
