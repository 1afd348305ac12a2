"""Planner of pipelined training: profile → partition → schedule → predicted cycles.

Nothing here touches a device, a file or an array of samples.
"""

from .costs import Costs, period_bound
from .partition import Partition, partition
from .patterns import one_f_one_b, sequential
from .plan import Plan, make_plan, make_schedule
from .profile import LayerProfile, Profile
from .schedule import Op, OpKind, Schedule, bound, delay, global_order, validate
from .search import no_drain, zero_bubble
from .simulate import Simulation, simulate


__all__ = ["Costs", "LayerProfile", "Op", "OpKind", "Partition", "Plan", "Profile", "Schedule",
           "Simulation", "bound", "delay", "global_order", "make_plan", "make_schedule",
           "no_drain", "one_f_one_b", "partition", "period_bound", "sequential", "simulate",
           "validate", "zero_bubble"]
