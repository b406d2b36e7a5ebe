"""Settings: what whoever runs a server can decide about it."""

from dataclasses import dataclass
from typing import final

from alpage.errors import InvalidValue

_MAX_S = 86_400.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is served.

    Args:
        names: what requests may call the model, the first as it calls itself.
        api_keys: of which a request has to bring one; empty: none is asked for.
        max_body_bytes: of a request.
        body_timeout_s: seconds that a request's body may take to arrive.
        max_prompts: of one request.
        queue_factor: continuations that wait, for each that can run: more are sent away.
        stall_s: seconds without a step, while there is work, after which the server is not healthy.
        drain_s: seconds that running requests have when the server is told to end.
        guide_timeout_s: seconds that a schema, regex or grammar of a request may take to compile.
        keep_alive_s: seconds of silence after which a stream says that it is alive.
        has_vllm_metrics: whether metrics that vLLM has too are also there by its names.
        logs_requests: whether each request gets a line on stderr.

    Raises:
        InvalidValue: a value is out of range.
    """

    names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 60.0
    max_prompts: int = 1024
    queue_factor: int = 4
    stall_s: float = 60.0
    drain_s: float = 30.0
    guide_timeout_s: float = 2.0
    keep_alive_s: float = 15.0
    has_vllm_metrics: bool = False
    logs_requests: bool = False

    def __post_init__(self) -> None:
        for field, values in (("names", self.names), ("api_keys", self.api_keys)):
            if not all(value and value.isascii() and value.isprintable() for value in values):
                raise InvalidValue(
                    field=field,
                    value="***" if field == "api_keys" else values,
                    limit="must be printable ASCII texts that are not empty",
                    remedy="Choose others",
                )
        _between("max_body_bytes", self.max_body_bytes, 1024, 2**30)
        _between("max_prompts", self.max_prompts, 1, 2**16)
        _between("queue_factor", self.queue_factor, 0, 2**16)
        for name in ("body_timeout_s", "stall_s", "drain_s", "guide_timeout_s", "keep_alive_s"):
            _between(name, getattr(self, name), 0.0, _MAX_S)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be between {low:g} and {high:g}",
            remedy=f"Choose {name} in that range",
        )
