"""Sequence: the state of one continuation and of the group that a request's continuations form.

A group is the unit of admission, a sequence the unit of compute and of preemption (Kwon et al.
2023, arXiv:2309.06180, section 4.5). Only the scheduler changes them.
"""

from dataclasses import dataclass, field
from typing import final


@final
@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, and where their keys and values are.

    Keys and values of `tokens[:num_computed]` lie in the pages of `table`. If `host_pages` is not
    empty, those of the `num_swapped` tokens from `host_start` on lie in host memory; what is
    between `num_computed` and `host_start` was shared with a sibling and is taken from it again.

    Attributes:
        index: which of the request's continuations it is.
        slot: its row in the runner's tensors.
        digests: of the full pages of `table` that the prefix index was told of.
        num_sent_pages: entries of `table` that the runner knows.
        is_running: whether it takes part in steps; a preempted sequence does not.
    """

    index: int
    slot: int
    tokens: list[int]
    num_computed: int = 0
    table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    host_pages: list[int] = field(default_factory=list)
    host_start: int = 0
    num_swapped: int = 0
    num_sent_pages: int = 0
    is_running: bool = False

    @property
    def num_missing(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.num_computed


@final
@dataclass(slots=True, eq=False)
class Group:
    """All continuations of one request, from admission to the end.

    Attributes:
        request_id: the request's name.
        key: place in the order of service, the least first.
        prompt_tokens: the request's prompt.
        num_sequences: continuations it grows to; their slots are taken at admission.
        max_new_tokens: tokens that each may output.
        is_lockstep: whether all sequences take each step together, as beams must.
        wants_prompt_logprobs: whether every prompt token must be computed, cached or not.
        salt: only requests of equal salt share pages.
        slots: rows taken and not in use.
        num_cached_tokens: prompt tokens that were found in the prefix cache.
        home: number of the memory that its pages are in, from admission on.
    """

    request_id: str
    key: tuple[int, int]
    prompt_tokens: tuple[int, ...]
    num_sequences: int
    max_new_tokens: int
    is_lockstep: bool = False
    wants_prompt_logprobs: bool = False
    salt: str = ""
    sequences: list[Sequence] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    home: int = 0
    has_forked: bool = False

    @property
    def is_prompt_only(self) -> bool:
        """Whether nothing is drawn, and the request is done once its prompt is computed."""
        return self.max_new_tokens == 0

    @property
    def leader(self) -> Sequence:
        """The sequence whose prefix its siblings share after a preemption."""
        return self.sequences[0]

    @property
    def is_in_step(self) -> bool:
        """Whether every sequence can take the next step now."""
        return all(s.is_running and s.num_missing == 1 for s in self.sequences)

    def num_pages_at_most(self, page_size: int) -> int:
        """Pages that suffice to finish it, whatever it samples.

        Full pages of the prompt are shared; behind them every sequence may need its own; and one
        page can be the source of a copy that has not happened yet.
        """
        num_tokens = len(self.prompt_tokens) + self.max_new_tokens
        num_shared = len(self.prompt_tokens) // page_size
        return num_shared + self.num_sequences * (-(-num_tokens // page_size) - num_shared) + 1


@final
@dataclass(frozen=True, slots=True)
class Child:
    """A sequence of the next generation: `parent` and one token more."""

    parent: Sequence
    token: int
    index: int
