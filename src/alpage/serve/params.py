"""Params: how a request wants its tokens chosen, and when it wants them to end.

Names and meanings are vLLM's and OpenAI's where those agree. Values out of range are refused here,
once, with the limit they broke.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, Literal, final

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide

MAX_SEQUENCES_PER_REQUEST = 64
MAX_LOGPROBS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_LOGIT_BIASES = 1024
# Of counts and token ids: what every device counts with.
_MAX_COUNT = 2**31 - 1
_COLLECTION = (Sequence, Set)
# Below, scaled logits leave the range of float32; 0 is the limit that they tend to.
MIN_TEMPERATURE = 0.01
_SWITCHES: Final = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "has_embedding",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Draw `n` continuations of a prompt.

    Args:
        n: continuations to return.
        best_of: continuations to draw; the `n` with the highest mean log-probability are returned.
        max_tokens: output tokens at most; None: as many as the model's length leaves; 0: nothing is
            drawn, and what is asked for of the prompt is all there is.
        min_tokens: output tokens before which neither the end of the text nor a stop token is
            drawn.
        temperature: 0 takes the likeliest token (of equals the lowest id); else logits are
            divided by it, 0.01 or more.
        top_k: draw among the likeliest k only; 0 or -1: among all.
        top_p: draw among the likeliest whose probabilities sum to at least p (nucleus).
        min_p: draw among those with at least this share of the likeliest token's probability.
        presence_penalty: subtracted once from the logit of every token that was output.
        frequency_penalty: subtracted from a token's logit for each time it was output.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt
            or output (Keskar et al. 2019, arXiv:1909.05858).
        logit_bias: added to the logits of these token ids.
        seed: same seed, same tokens, whatever else is in the batch, as far as the dtype gives the
            same logits there: float32 does; None draws a seed.
        stop: strings that end the text, looked for once `min_tokens` are out; excluded from it
            unless `include_stop_str_in_output`.
        stop_token_ids: tokens that end the text, besides the model's own.
        ignore_eos: do not end at the model's end-of-text tokens.
        logprobs: also return the log-probabilities (of the model, before any of the above) of the
            chosen token and of this many likeliest ones.
        prompt_logprobs: the same for the prompt's tokens.
        has_embedding: whether the output has what the model makes of the prompt, as numbers.
        skip_special_tokens: leave special tokens out of the text.
        guide: the form that the text must have, and ends with.

    Raises:
        InvalidValue: a value is out of range.
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    has_embedding: bool = False
    skip_special_tokens: bool = True
    guide: Guide | None = None

    def __post_init__(self) -> None:
        _whole("n", self.n, 1, MAX_SEQUENCES_PER_REQUEST)
        if self.best_of is not None:
            _whole("best_of", self.best_of, self.n, MAX_SEQUENCES_PER_REQUEST)
        _check_lengths(self.max_tokens, self.min_tokens, least=0)
        _real("temperature", self.temperature, 0.0, 100.0)
        if self.temperature:
            _real("temperature", self.temperature, MIN_TEMPERATURE, 100.0)
        _whole("top_k", self.top_k, -1, _MAX_COUNT)
        _real("top_p", self.top_p, 0.0, 1.0, excludes_low=True)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_bias({} if self.logit_bias is None else self.logit_bias)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        _check_stop(self.stop)
        _check_stop_ids(self.stop_token_ids)
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _whole(name, value, 0, MAX_LOGPROBS)
        for name in _SWITCHES:
            _kind(name, getattr(self, name), (bool,), "True or False")
        if self.guide is not None:
            _kind("guide", self.guide, (Guide,), "a Guide, such as Guide.regex(...)")

    @property
    def num_sequences(self) -> int:
        """Continuations that are drawn."""
        return self.n if self.best_of is None else self.best_of

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Search for the likeliest continuations, keeping `beam_width` at a time.

    Scores, order and stopping are those of Hugging Face's beam search.

    Args:
        beam_width: hypotheses that are extended at every step.
        n: hypotheses to return, the best first; None: `beam_width`.
        max_tokens: output tokens at most; None: as many as the model's length leaves.
        min_tokens: output tokens before which no hypothesis ends.
        length_penalty: a finished hypothesis scores its log-probability over length to this power.
        early_stopping: True ends once `beam_width` hypotheses are finished; False also looks
            whether a running one could still win at its current length; "never" at the best length
            it may reach.
        ignore_eos: do not end hypotheses at the model's end-of-text tokens.
        stop_token_ids: tokens that end a hypothesis, besides the model's own.
        skip_special_tokens: leave special tokens out of the text.

    Raises:
        InvalidValue: a value is out of range.
    """

    beam_width: int
    n: int | None = None
    max_tokens: int | None = 256
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] | None = ()
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _whole("beam_width", self.beam_width, 1, MAX_SEQUENCES_PER_REQUEST)
        if self.n is not None:
            _whole("n", self.n, 1, self.beam_width)
        _check_lengths(self.max_tokens, self.min_tokens, least=1)
        _real("length_penalty", self.length_penalty, -10.0, 10.0)
        if not isinstance(self.early_stopping, str) or self.early_stopping != "never":
            _kind("early_stopping", self.early_stopping, (bool,), 'True, False or "never"')
        _check_stop_ids(self.stop_token_ids)
        for name in ("ignore_eos", "skip_special_tokens"):
            _kind(name, getattr(self, name), (bool,), "True or False")

    @property
    def num_sequences(self) -> int:
        """Hypotheses that are extended at every step."""
        return self.beam_width


def _whole(name: str, value: object, low: int, high: int) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:  # type: ignore[operator]
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be a whole number, between {low} and {high}",
            remedy=f"Choose {name} in that range",
        )


def _real(name: str, value: object, low: float, high: float, *, excludes_low: bool = False) -> None:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_real or not low <= value <= high or (excludes_low and value == low):  # type: ignore[operator]
        bounds = (
            f"above {low:g} and at most {high:g}"
            if excludes_low
            else f"between {low:g} and {high:g}"
        )
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be a number {bounds}",
            remedy=f"Choose {name} in that range",
        )


def _kind(name: str, value: object, kinds: tuple[type, ...], kind: str) -> None:
    if not isinstance(value, kinds):
        raise InvalidValue(
            field=name,
            value=value,
            limit=f"must be {kind}",
            remedy=f"Give that, or leave {name} out",
        )


def _check_lengths(max_tokens: int | None, min_tokens: int, *, least: int) -> None:
    if max_tokens is not None:
        _whole("max_tokens", max_tokens, least, _MAX_COUNT)
    _whole("min_tokens", min_tokens, 0, _MAX_COUNT if max_tokens is None else max_tokens)


def _check_bias(logit_bias: Mapping[int, float]) -> None:
    _kind("logit_bias", logit_bias, (Mapping,), "a table of token ids and numbers")
    if len(logit_bias) > MAX_LOGIT_BIASES:
        raise InvalidValue(
            field="logit_bias",
            value=f"{len(logit_bias)} entries",
            limit=f"may hold at most {MAX_LOGIT_BIASES} entries",
            remedy="Keep the entries that matter most",
        )
    for token, bias in logit_bias.items():
        _whole("logit_bias", token, 0, _MAX_COUNT)
        _real(f"logit_bias[{token}]", bias, -100.0, 100.0)


def _check_stop_ids(stop_token_ids: Sequence[int] | None) -> None:
    if stop_token_ids is None:
        return
    _kind("stop_token_ids", stop_token_ids, _COLLECTION, "a list of token ids")
    for token in stop_token_ids:
        _whole("stop_token_ids", token, 0, _MAX_COUNT)


def _check_stop(stop: str | Sequence[str] | None) -> None:
    if stop is None:
        return
    _kind("stop", stop, _COLLECTION, "a text or a list of texts")
    stop_strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise InvalidValue(
            field="stop",
            value=f"{len(stop_strings)} strings",
            limit=f"may hold at most {MAX_STOP_STRINGS} strings",
            remedy="Keep the strings that matter most",
        )
    for text in stop_strings:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidValue(
                field="stop",
                value=text,
                limit=f"must be strings of 1 to {MAX_STOP_CHARACTERS} characters",
                remedy="Leave out empty strings, shorten long ones",
            )
