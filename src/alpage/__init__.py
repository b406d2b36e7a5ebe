"""alpage: train and serve large language models on whatever hardware there is."""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.errors import AlpageError
    from alpage.serve.guide import Guide
    from alpage.serve.llm import LLM
    from alpage.serve.outputs import CompletionOutput, RequestOutput, StreamChunk
    from alpage.serve.params import BeamSearchParams, SamplingParams
    from alpage.version import __version__ as __version__

__all__ = [
    "LLM",
    "AlpageError",
    "BeamSearchParams",
    "CompletionOutput",
    "Guide",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AlpageError": "errors",
        "LLM": "serve.llm",
        "BeamSearchParams": "serve.params",
        "CompletionOutput": "serve.outputs",
        "Guide": "serve.guide",
        "RequestOutput": "serve.outputs",
        "SamplingParams": "serve.params",
        "StreamChunk": "serve.outputs",
        "__version__": "version",
    },
)
