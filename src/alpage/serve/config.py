"""Config: what a user can decide about an engine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from alpage.errors import InvalidValue
from alpage.units import parse_bytes

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
LAYOUTS = ("auto", "ws_1d", "ws_2d", "megatron")
PREFILL_LAYOUTS = (*LAYOUTS, "wg_x", "wg_xy", "wg_xyz")
QUANTIZATIONS = ("int8", "int4")
KV_DTYPES = ("int8",)
# Of a matrix; those of 4 bits have a scale and a minimum for each 32.
ELEMENT_BYTES: Mapping[str, float] = {"int8": 1, "int4": 0.625}
# Of the vocabulary projection, which has a scale for each 32.
INT8_VOCAB_BYTES = 1.0625
ATTENTIONS = ("auto", "heads", "batch")
_MAX_SECONDS = 3600
DTYPES = ("auto", "bfloat16", "float16", "float32")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine uses its machine.

    Args:
        dtype: "auto", "bfloat16", "float16" or "float32"; auto is bfloat16 where the device or our
            kernels compute in it, else float32.
        quantization: "int8" keeps matrices in 8 bits with a scale a row; "int4" those of a GGUF
            file of Q4_0 or Q4_1 as they are; None: in `dtype`.
        kv_dtype: "int8" keeps keys and values in 8 bits with a scale for each token and head, on a
            CPU; None: in `dtype`.
        device: "auto", "cpu", "cuda" or "cuda:N"; auto is a GPU if there is one.
        kv_memory: memory for keys and values, such as "2GiB"; None: from what is free.
        swap_memory: host memory that preempted sequences are swapped to; None: a quarter of
            kv_memory.
        page_size: tokens in a page, a multiple of 8.
        max_model_len: tokens of prompt and output together; None: the model's own limit.
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens that a step computes; None: 512 on a CPU, 4,096 on a GPU.
        target_itl_s: seconds between a sequence's tokens that prompts beside it should not exceed:
            a step then computes as many of their tokens as the steps before had time for; None: as
            many as a step may have.
        has_prefix_cache: whether prompts share what equal prefixes computed.
        has_weight_cache: whether a model on a CPU is kept on disk as it lies in memory, beside the
            model cache, for the next start.
        attention_backend: "auto" or one by name: native, sdpa, reference.
        devices: that all replicas together take; on a CPU processes of this machine, which share
            its cores.
        replicas: of the model, each with an equal share of the devices, that its model is cut over;
            kv_memory and swap_memory are those of one device, max_num_seqs and
            max_num_batched_tokens of one replica.
        stages: of a pipeline through its blocks; each has an equal share of the devices.
        layout: how it is cut in steps that decode: "auto", or one of ws_1d, ws_2d, megatron.
        prefill_layout: how it is cut in larger steps: "auto", the same, or where that is ws_2d one
            of wg_x, wg_xy, wg_xyz.
        attention_sharding: what ranks attend for: "heads" of every sequence, the sequences of a
            "batch", or "auto".
        seed: of the seeds of requests that bring none.
        deterministic: whether to start only where a request gets the same tokens and
            log-probabilities, to the bit, in any batch, chunking or preemption.

    Raises:
        InvalidValue: a value is out of range.
    """

    dtype: str = "auto"
    quantization: Literal["int8", "int4"] | None = None
    kv_dtype: Literal["int8"] | None = None
    device: str = "auto"
    kv_memory: str | int | None = None
    swap_memory: str | int | None = None
    page_size: int = 16
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int | None = None
    target_itl_s: float | None = None
    has_prefix_cache: bool = True
    has_weight_cache: bool = True
    attention_backend: str = "auto"
    devices: int = 1
    stages: int = 1
    replicas: int = 1
    layout: str = "auto"
    prefill_layout: str = "auto"
    attention_sharding: str = "auto"
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of_or_none("quantization", self.quantization, QUANTIZATIONS)
        _one_of_or_none("kv_dtype", self.kv_dtype, KV_DTYPES)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise InvalidValue(
                field="device",
                value=self.device,
                limit='must be "auto", "cpu", "cuda" or "cuda:N"',
                remedy="Choose one of these",
            )
        if self.kv_memory is not None:
            parse_bytes(self.kv_memory, field="kv_memory")
        is_without_swap = isinstance(self.swap_memory, int) and self.swap_memory == 0
        if self.swap_memory is not None and not is_without_swap:
            parse_bytes(self.swap_memory, field="swap_memory")
        _whole("page_size", self.page_size, 8, 2**16, multiple=8)
        _whole("max_num_seqs", self.max_num_seqs, 1, 2**16)
        if self.max_model_len is not None:
            _whole("max_model_len", self.max_model_len, 2, 2**31 - 1)
        if self.max_num_batched_tokens is not None:
            low = self.max_num_seqs
            _whole("max_num_batched_tokens", self.max_num_batched_tokens, low, 2**24)
        _seconds_or_none("target_itl_s", self.target_itl_s)
        _whole("devices", self.devices, 1, 64)
        _whole("replicas", self.replicas, 1, 64)
        if self.devices % self.replicas:
            raise InvalidValue(
                field="replicas",
                value=self.replicas,
                limit=f"must divide devices={self.devices}, which they share equally",
                remedy="Choose a number of devices that is a multiple of the replicas",
            )
        if self.quantization == "int4" and self.devices > 1:
            raise InvalidValue(
                field="quantization",
                value=self.quantization,
                limit=f"cannot be cut over devices={self.devices}",
                remedy='Use one device, or quantization="int8"',
            )
        _whole("stages", self.stages, 1, 64)
        if self.devices_per_replica % self.stages:
            raise InvalidValue(
                field="stages",
                value=self.stages,
                limit=f"must divide the {self.devices_per_replica} devices of a replica",
                remedy="Choose a number that does",
            )
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("prefill_layout", self.prefill_layout, PREFILL_LAYOUTS)
        _one_of("attention_sharding", self.attention_sharding, ATTENTIONS)
        _kind("has_prefix_cache", self.has_prefix_cache, bool, "True or False")
        _kind("has_weight_cache", self.has_weight_cache, bool, "True or False")
        _kind("attention_backend", self.attention_backend, str, "the name of a backend")
        _whole("seed", self.seed, 0, 2**64 - 1)

    @property
    def devices_per_replica(self) -> int:
        """Devices that one model is cut over, stages and all."""
        return self.devices // self.replicas


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidValue(
            field=name,
            value=value,
            limit="must be one of " + ", ".join(known),
            remedy="Choose one of these",
        )


def _one_of_or_none(name: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None:
        _one_of(name, value, known)


def _kind(name: str, value: object, kind: type, limit: str) -> None:
    if not isinstance(value, kind):
        raise InvalidValue(
            field=name, value=value, limit=f"must be {limit}", remedy="Give that, or leave it out"
        )


def _seconds_or_none(name: str, value: object) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= _MAX_SECONDS:  # type: ignore[operator]
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be a number of seconds above 0 and at most {_MAX_SECONDS:,}",
            remedy="Give seconds, such as 0.05 for 50 ms",
        )


def _whole(name: str, value: object, low: int, high: int, *, multiple: int = 1) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high or value % multiple:  # type: ignore[operator]
        also = f" and a multiple of {multiple}" if multiple > 1 else ""
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be a whole number, at least {low} and at most {high}{also}",
            remedy=f"Choose {name} in that range",
        )
