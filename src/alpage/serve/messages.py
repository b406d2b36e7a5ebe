"""Messages: what the engine tells the ranks of a mesh, and what the first one answers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import msgspec

from alpage.serve.batch import Batch
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.results import RowResult
from alpage.serve.slots import DrawRule


@final
class Open(msgspec.Struct, tag="open", array_like=True):
    """A request is known from here on, and how it draws."""

    request_id: str
    sampling: SamplingParams | None
    beam: BeamSearchParams | None
    seed: int
    end_ids: tuple[int, ...]

    @staticmethod
    def of(request_id: str, rule: DrawRule) -> "Open":
        """Return the message for a rule."""
        params = rule.params
        return Open(
            request_id,
            params if isinstance(params, SamplingParams) else None,
            params if isinstance(params, BeamSearchParams) else None,
            rule.seed,
            rule.end_ids,
        )

    @property
    def rule(self) -> DrawRule:
        """How the request draws."""
        params = self.sampling or self.beam
        assert params is not None
        return DrawRule(params=params, seed=self.seed, end_ids=self.end_ids)


@final
class Close(msgspec.Struct, tag="close", array_like=True):
    """A request is forgotten."""

    request_id: str


@final
class Run(msgspec.Struct, tag="run", array_like=True):
    """A step, which is answered with a result for each of its rows."""

    batch: Batch


Message: TypeAlias = Open | Close | Run

encode = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(Message).decode
decode_results = msgspec.msgpack.Decoder(list[RowResult]).decode


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a rank needs to begin: plain values, the same for all ranks.

    Attributes:
        model: path of the checkpoint.
        dtype: "bfloat16", "float16" or "float32".
        quantization: "int8", "int4" or None.
        kv_dtype: that of keys and values as they are kept.
        layouts: name of a layout of the blocks, and the fewest tokens that a step has in it.
        homes: mesh axes over which sequences have homes.
        mesh: size of each axis, of one stage.
        num_stages: of the pipeline.
        num_pages: pages of its own.
        num_host_pages: pages to swap to.
        page_size: tokens in a page.
        max_model_len: tokens of the longest sequence.
        max_num_seqs: sequences that run at a time.
        attention_backend: "auto" or one by name.
        num_threads: of PyTorch.
    """

    model: str
    dtype: str
    quantization: Literal["int8", "int4"] | None
    kv_dtype: str
    layouts: list[tuple[str, int]]
    homes: tuple[str, ...]
    mesh: dict[str, int]
    num_stages: int
    num_pages: int
    num_host_pages: int
    page_size: int
    max_model_len: int
    max_num_seqs: int
    attention_backend: str
    num_threads: int
