"""Build: from a checkpoint and a config to an engine that fits the machine."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from alpage.errors import AlpageError, BadCheckpoint, InvalidValue
from alpage.hardware import available_memory_bytes
from alpage.models import Checkpoint, Model, Tokenizer, catalogue, load
from alpage.ops import AttentionSpec, Backend, KvPool, backends, select
from alpage.ops.kv import scale_bytes
from alpage.ops.program import Program
from alpage.serve.allocation import allocating
from alpage.serve.config import ELEMENT_BYTES, EngineConfig
from alpage.serve.engine import Engine
from alpage.serve.fleet import Fleet
from alpage.serve.grammars import Grammars
from alpage.serve.intake import Intake, Limits
from alpage.serve.invariance import check_invariance
from alpage.serve.kv_memory import KvMemory, PreemptionCost
from alpage.serve.machine import find_device, find_dtype, find_kv_dtype, free_bytes
from alpage.serve.pace import Pace
from alpage.serve.pages import PagePool
from alpage.serve.runner import Runner, View
from alpage.serve.runs import Runs
from alpage.serve.scheduler import Scheduler
from alpage.serve.serves import Serves
from alpage.serve.sizing import Sizes, size
from alpage.serve.slots import Slots
from alpage.units import format_bytes
from alpage.workload import ModelShape

# Of the memory that is free once the weights are loaded. A CPU's is shared with everything else;
# what a GPU keeps back is for activations and logits.
_KV_SHARE = {"cpu": 0.5, "cuda": 0.9}
_BATCHED_TOKENS = {"cpu": 512, "cuda": 4096}
# What a swap and a recompute cost, in orders of magnitude: they differ by one or two of these, so
# the choice between them does not hang on the last digit. Copies: memory to memory, and over PCIe.
_COPY_BYTES_PER_S = {"cpu": 8e9, "cuda": 20e9}
_FLOPS_PER_S = {"cpu": 200e9, "cuda": 200e12}


def build_engine(
    checkpoint: Checkpoint, config: EngineConfig, notify: Callable[[str], None]
) -> Serves:
    """Return an engine for a checkpoint's model, or a fleet of them where there are replicas.

    Args:
        checkpoint: one without a usable tokenizer gives no texts, and takes token ids only.
        config: how to use the machine.
        notify: takes lines for the user, such as a limit that memory set.

    Raises:
        AlpageError: the model cannot be read or held, or the config does not fit it.
    """
    engine = _build(checkpoint, config, notify)
    if config.deterministic:
        for each in engine.engines:
            check_invariance(each)
    return engine


def _build(checkpoint: Checkpoint, config: EngineConfig, notify: Callable[[str], None]) -> Serves:
    tokenizer = tokenizer_or_none(checkpoint)
    eos_ids = checkpoint.eos_ids if tokenizer is None else tokenizer.eos_ids
    device = find_device(config.device)
    dtype = find_dtype(config.dtype, device)
    if config.devices == 1:
        network = _load(checkpoint, config, dtype, device)
        return assemble(network, eos_ids, tokenizer, config, notify)
    from alpage.serve.mesh import plan_mesh, start_meshes  # noqa: PLC0415 - most have one device

    plan = plan_mesh(checkpoint, config, device, dtype, notify)
    _check_eos(eos_ids, plan.shape)
    sizes = size(
        config,
        max_positions=plan.max_positions,
        kv_bytes_per_token=_token_bytes(plan.attending_shape, plan.kv_dtype),
        free_bytes=plan.free_bytes,
        free_host_bytes=None,
        share=_KV_SHARE[device.type],
        notify=notify,
    )
    runners = start_meshes(plan, sizes, config)
    intake = _intake(sizes, plan.shape, eos_ids, tokenizer, config)
    engines = [
        _engine(runner, intake, sizes, plan.shape, config, device, plan.num_homes)
        for runner in runners
    ]
    return engines[0] if config.replicas == 1 else Fleet(engines, intake)


def assemble(
    model: Model,
    eos_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    config: EngineConfig,
    notify: Callable[[str], None],
) -> Engine:
    """Return an engine for a model that is in memory, on one device. See `build_engine`."""
    weight = next(model.parameters())
    device, dtype, shape = weight.device, weight.dtype, model.shape
    kv_dtype = find_kv_dtype(config.kv_dtype, dtype, device)
    _check_eos(eos_ids, shape)
    sizes = size(
        config,
        max_positions=model.max_positions,
        kv_bytes_per_token=_token_bytes(shape, kv_dtype),
        free_bytes=max(0, free_bytes(device) - model.num_mapped_bytes),
        free_host_bytes=None if device.type == "cpu" else available_memory_bytes(),
        share=_KV_SHARE[device.type],
        notify=notify,
    )
    backend = _backend(config, shape, dtype, kv_dtype, device, notify)
    with allocating(
        field="kv_memory",
        value=format_bytes(sizes.num_pages * sizes.page_bytes),
        limit="cannot be had, with swap_memory and what max_num_seqs sequences of max_model_len "
        f"({config.max_num_seqs} of {sizes.max_model_len:,} tokens) take besides",
        remedy="Lower kv_memory, swap_memory, max_num_seqs or max_model_len",
    ):
        runner = Runner(
            [View(model=model, program=_program(model, backend, dtype))],
            KvPool.of(shape, sizes.num_pages, config.page_size, kv_dtype, device),
            KvPool.of(shape, sizes.num_host_pages, config.page_size, kv_dtype, torch.device("cpu")),
            backend,
            Slots(config.max_num_seqs, sizes.max_model_len, config.page_size),
        )
    intake = _intake(sizes, shape, eos_ids, tokenizer, config)
    return _engine(runner, intake, sizes, shape, config, device)


def _program(model: Model, backend: Backend, dtype: torch.dtype) -> Program | None:
    """Return the blocks in one call, where attention is by the same kernels."""
    return model.program() if backend.name == "native" and dtype == torch.bfloat16 else None


def tokenizer_or_none(checkpoint: Checkpoint) -> Tokenizer | None:
    """Return the tokenizer; None where there is none, since token ids can do without."""
    try:
        return checkpoint.tokenizer()
    except AlpageError:
        return None


# -- the parts -------------------------------------------------------------------------------------


def _engine(
    runner: Runs,
    intake: Intake,
    sizes: Sizes,
    shape: ModelShape,
    config: EngineConfig,
    device: torch.device,
    num_homes: int = 1,
) -> Engine:
    most_tokens = config.max_num_batched_tokens or max(
        _BATCHED_TOKENS[device.type], config.max_num_seqs
    )
    scheduler = Scheduler(
        _kv_memories(sizes, config, shape, device, num_homes),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=most_tokens,
    )
    pace = None
    if config.target_itl_s is not None:
        pace = Pace(
            target_s=config.target_itl_s, num_chunk_tokens=most_tokens, most_tokens=most_tokens
        )
    return Engine(scheduler, runner, intake, pace)


def _intake(
    sizes: Sizes,
    shape: ModelShape,
    eos_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    config: EngineConfig,
) -> Intake:
    limits = Limits(
        max_model_len=sizes.max_model_len,
        max_num_seqs=config.max_num_seqs,
        num_pages=sizes.num_pages,
        page_size=config.page_size,
        vocab_size=shape.vocab_size,
        eos_ids=eos_ids,
        has_whole_states=config.devices == config.replicas,
    )
    grammars = None if tokenizer is None else Grammars(tokenizer, shape.vocab_size, eos_ids)
    return Intake(limits, tokenizer, grammars=grammars, seed=config.seed)


def _check_eos(eos_ids: frozenset[int], shape: ModelShape) -> None:
    if max(eos_ids, default=0) >= shape.vocab_size:
        raise BadCheckpoint(
            field="eos_token_id",
            value=max(eos_ids),
            limit=f"is no token of the model's vocabulary of {shape.vocab_size}",
            remedy="Mend generation_config.json, config.json or the tokenizer's files",
        )


def _load(
    checkpoint: Checkpoint, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> Model:
    num_free_bytes = free_bytes(device)
    quantization = config.quantization
    element_bytes = dtype.itemsize if quantization is None else ELEMENT_BYTES[quantization]
    num_weights = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    num_bytes = int(element_bytes * num_weights)
    with allocating(
        field="model",
        value=str(checkpoint.source),
        limit=f"its weights, {format_bytes(num_bytes)} as {config.quantization or dtype}, do not "
        f"fit into the {format_bytes(num_free_bytes)} that are free on {device}",
        remedy="Use a smaller model or dtype, or a device with more memory",
    ):
        # A CPU's memory is handed out before it is there: too much of it ends the process.
        if num_bytes > num_free_bytes:
            raise MemoryError
        return load(
            checkpoint,
            dtype=dtype,
            device=device,
            quantization=config.quantization,
            cache=_cache(config, device),
        )


def _cache(config: EngineConfig, device: torch.device) -> Path | None:
    if not config.has_weight_cache or device.type != "cpu":
        return None
    try:
        return catalogue.default_packed_cache()
    except InvalidValue:
        return None  # This user has no home.


def _kv_memories(
    sizes: Sizes, config: EngineConfig, shape: ModelShape, device: torch.device, num_homes: int
) -> list[KvMemory]:
    key = os.urandom(32)
    cost = PreemptionCost(
        swap_s_per_page=2 * sizes.page_bytes / _COPY_BYTES_PER_S[device.type],
        recompute_s_per_token=2 * shape.num_parameters / _FLOPS_PER_S[device.type],
    )
    return [
        KvMemory(
            PagePool(
                sizes.num_pages,
                config.page_size,
                first=home * sizes.num_pages,
                key=key,
                has_prefix_cache=config.has_prefix_cache,
            ),
            PagePool(
                sizes.num_host_pages,
                config.page_size,
                first=home * sizes.num_host_pages,
                has_prefix_cache=False,
            ),
            cost,
        )
        for home in range(num_homes)
    ]


def _token_bytes(shape: ModelShape, kv_dtype: torch.dtype) -> int:
    return shape.kv_bytes_per_token(kv_dtype.itemsize, scale_bytes(kv_dtype))


def _backend(
    config: EngineConfig,
    shape: ModelShape,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
    notify: Callable[[str], None],
) -> Backend:
    spec = AttentionSpec(
        device=device.type,
        dtype=dtype,
        kv_dtype=kv_dtype,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        page_size=config.page_size,
    )
    ways = backends()
    backend = select(spec, ways, config.attention_backend)
    if device.type == "cpu" and config.attention_backend == "auto" and backend is not ways[0]:
        notify(f"Attention is slower than it could be: {ways[0].supports(spec)}.")
    return backend
