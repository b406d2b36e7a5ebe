"""Sizing: how many pages an engine has, and how long its sequences can be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from alpage.errors import InvalidValue, OutOfMemory
from alpage.serve.config import EngineConfig
from alpage.units import MiB, format_bytes, parse_bytes


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What fits.

    Attributes:
        page_bytes: keys and values of one page in all layers.
        num_pages: pages on the device.
        num_host_pages: pages to swap to.
        max_model_len: tokens of the longest sequence.
    """

    page_bytes: int
    num_pages: int
    num_host_pages: int
    max_model_len: int


def size(
    config: EngineConfig,
    *,
    max_positions: int,
    kv_bytes_per_token: int,
    free_bytes: int,
    free_host_bytes: int | None,
    share: float,
    notify: Callable[[str], None],
) -> Sizes:
    """Return what fits into `kv_memory`, else into what is usable and could ever be used.

    Args:
        config: how to use the machine.
        max_positions: the model's own limit.
        kv_bytes_per_token: of one token in all layers.
        free_bytes: memory that is free.
        free_host_bytes: memory of the host that is free; None: it is the same memory.
        share: of it that is taken if the config does not say.
        notify: takes a line where memory limits the length of requests.

    Raises:
        InvalidValue: the config asks for longer sequences than the model has positions.
        OutOfMemory: more is asked for than is free, or not even a short sequence fits.
    """
    if config.max_model_len is not None and config.max_model_len > max_positions:
        raise InvalidValue(
            field="max_model_len",
            value=config.max_model_len,
            limit=f"may be at most {max_positions}, the model's own limit",
            remedy="Lower it, or leave it out",
        )
    wanted_len = config.max_model_len or max_positions
    page_bytes = kv_bytes_per_token * config.page_size
    if config.kv_memory is None:
        num_useful = config.max_num_seqs * (-(-wanted_len // config.page_size) + 1)
        num_pages = min(int(free_bytes * share) // page_bytes, num_useful)
    else:
        num_pages = parse_bytes(config.kv_memory, field="kv_memory") // page_bytes
        if num_pages * page_bytes > free_bytes:
            raise OutOfMemory(
                field="kv_memory",
                value=config.kv_memory,
                limit=f"is more than the {format_bytes(free_bytes)} that are free",
                remedy="Ask for less, or leave it out",
            )
    held = format_bytes(num_pages * page_bytes)
    # A page is kept for a copy that is under way while a sequence fills all others.
    num_tokens = (num_pages - 1) * config.page_size
    if num_tokens < config.page_size:
        raise OutOfMemory(
            field="kv_memory",
            value=held if config.kv_memory is None else config.kv_memory,
            limit=f"cannot hold one request: a page of {config.page_size} tokens takes "
            f"{format_bytes(page_bytes)}, and two are the least",
            remedy=f"Give kv_memory of {format_bytes(max(2 * page_bytes, MiB))} or more",
        )
    if num_tokens < wanted_len:
        notify(
            f"KV memory of {held} holds {num_tokens:,} tokens: requests are limited to that, "
            f"not to {wanted_len:,}. Raise kv_memory for longer ones."
        )
    kv_bytes = num_pages * page_bytes
    left_bytes = free_bytes - kv_bytes if free_host_bytes is None else free_host_bytes
    return Sizes(
        page_bytes=page_bytes,
        num_pages=num_pages,
        num_host_pages=_swap_bytes(config, kv_bytes, left_bytes) // page_bytes,
        max_model_len=min(num_tokens, wanted_len),
    )


def _swap_bytes(config: EngineConfig, kv_bytes: int, left_bytes: int) -> int:
    if config.swap_memory is None:
        return min(kv_bytes // 4, left_bytes)
    if config.swap_memory == 0:
        return 0
    swap_bytes = parse_bytes(config.swap_memory, field="swap_memory")
    if swap_bytes > left_bytes:
        raise OutOfMemory(
            field="swap_memory",
            value=config.swap_memory,
            limit=f"is more than the {format_bytes(left_bytes)} that the host has left",
            remedy="Ask for less, or leave it out",
        )
    return swap_bytes
