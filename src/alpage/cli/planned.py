"""Planned: a plan for inference with what is said about it, for whoever shows it."""

from dataclasses import asdict, dataclass
from typing import Any, final

from alpage.hardware import Cluster
from alpage.planners import (
    Candidate,
    Choice,
    InferencePlan,
    Phase,
    Remedies,
    Switch,
    explain,
    remedies,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPhase:
    """One phase: what was chosen, why, and what would make it faster."""

    phase: Phase
    choice: Choice
    why: tuple[str, ...]
    remedies: Remedies

    @property
    def context(self) -> int:
        """Tokens of each prompt."""
        step = self.choice.best.step
        return step.num_new_tokens if self.phase == "prefill" else step.num_past_tokens

    @property
    def work(self) -> str:
        """What a step computes, in words."""
        batch = self.choice.best.step.num_sequences
        sequences = "1 sequence" if batch == 1 else f"{batch:,} sequences"
        between = "of" if self.phase == "prefill" else "behind"
        return f"{self.phase} of {sequences} {between} {self.context:,} tokens"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """All of it.

    Attributes:
        model: as the user named it.
        cluster: where it runs.
        phases: one, or prefill and decode.
        switch: between the two.
        new_tokens: decoded for each prompt.
    """

    model: str
    cluster: Cluster
    phases: tuple[PlannedPhase, ...]
    switch: Switch | None
    new_tokens: int

    @property
    def title(self) -> str:
        """Model and cluster."""
        return f"{self.model} on {self.cluster.name}"

    @property
    def total_s(self) -> float:
        """Seconds from a prompt to its last new token."""
        prefill, decode = (one.choice.best.step_s for one in self.phases)
        return prefill + (self.switch.time_s if self.switch else 0.0) + self.new_tokens * decode


def planned(model: str, cluster: Cluster, plan: InferencePlan, new_tokens: int) -> Planned:
    """Return a plan with its reasons and remedies."""
    choices: tuple[tuple[Phase, Choice | None], ...] = (
        ("prefill", plan.prefill),
        ("decode", plan.decode),
    )
    return Planned(
        model=model,
        cluster=cluster,
        phases=tuple(
            PlannedPhase(phase=phase, choice=choice, why=explain(choice), remedies=remedies(choice))
            for phase, choice in choices
            if choice is not None
        ),
        switch=plan.switch,
        new_tokens=new_tokens,
    )


def to_json(plan: Planned) -> dict[str, Any]:
    """Return one phase as an object, or an object of both and of the switch between them."""
    if plan.switch is None:
        (alone,) = plan.phases
        return _phase_to_json(plan, alone)
    return {
        **{one.phase: _phase_to_json(plan, one) for one in plan.phases},
        "switch": {
            "before": str(plan.switch.before),
            "after": str(plan.switch.after),
            "collectives": [str(collective) for collective in plan.switch.collectives],
            "wire_bytes_per_device": plan.switch.wire_bytes,
            "time_s": plan.switch.time_s,
        },
    }


def _phase_to_json(plan: Planned, one: PlannedPhase) -> dict[str, Any]:
    choice, found = one.choice, one.remedies
    other = choice.runner_up
    return {
        "model": plan.model,
        "cluster": plan.cluster.name,
        "phase": one.phase,
        "context": one.context,
        **_candidate_to_json(choice.best),
        "num_candidates": len(choice.candidates),
        "runner_up": None if other is None else _candidate_to_json(other),
        "explain": list(one.why),
        "remedies": {
            remedy.name: {"saved_s": remedy.saved_s, "step_time_s": remedy.step_s}
            for remedy in (*found.each, found.together)
        },
        "bounds": asdict(found.bounds) | {"additive_s": found.bounds.additive_s},
    }


def _candidate_to_json(one: Candidate) -> dict[str, Any]:
    return {
        "layout": one.layout.name,
        "attention_sharding": one.attention_sharding,
        "mesh": dict(one.mesh.axes),
        "batch": one.step.num_sequences,
        "weights": one.precision.weights,
        "kv": one.precision.kv,
        "step_time_s": one.step_s,
        "device_s_per_token": one.device_s_per_token,
        "mfu": one.mfu,
        "terms": asdict(one.terms),
        "memory_bytes_per_device": round(one.memory.total_bytes),
    }
