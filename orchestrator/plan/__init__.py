"""What an experiment will take, before it starts, and afterwards what it took beside what was planned.

No torch, no ray: a plan is arithmetic over the spec, the factor tables and earlier run folders.
"""

from orchestrator.plan.failures import Reliability
from orchestrator.plan.plan import PlanOptions, make_plan
from orchestrator.plan.variance import compare

__all__ = ["PlanOptions", "Reliability", "compare", "make_plan"]
