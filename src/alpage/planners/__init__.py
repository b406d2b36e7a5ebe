"""Planners: searches from a model, a cluster and a workload to a plan.

May import: cost, layout, hardware and the base modules. What is here so far needs no torch.
"""

from alpage.planners.layouts import Candidate, Choice, candidates, choose_layout, meshes
from alpage.planners.serving import ServingPlan, StepLayout, plan_serving

__all__ = [
    "Candidate",
    "Choice",
    "ServingPlan",
    "StepLayout",
    "candidates",
    "choose_layout",
    "meshes",
    "plan_serving",
]
