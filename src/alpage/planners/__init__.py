"""Planners: searches from a model, a cluster and a workload to a plan.

May import: cost, layout, hardware and the base modules. What is here so far needs no torch.
"""

from alpage.planners.explain import explain
from alpage.planners.inference import InferencePlan, Phase, plan_inference
from alpage.planners.layouts import (
    Candidate,
    Choice,
    Objective,
    candidates,
    choose_layout,
    meshes,
)
from alpage.planners.pareto import frontier, slices, sweep
from alpage.planners.remedies import Remedies, remedies
from alpage.planners.serving import ServingPlan, StepLayout, plan_serving
from alpage.planners.switch import Switch

__all__ = [
    "Candidate",
    "Choice",
    "InferencePlan",
    "Objective",
    "Phase",
    "Remedies",
    "ServingPlan",
    "StepLayout",
    "Switch",
    "candidates",
    "choose_layout",
    "explain",
    "frontier",
    "meshes",
    "plan_inference",
    "plan_serving",
    "remedies",
    "slices",
    "sweep",
]
