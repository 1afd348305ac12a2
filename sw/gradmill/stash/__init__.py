"""Which hidden activations are kept in which stash format, and who decides."""

from .adaptive import AdaptiveStash
from .auto import AutoStash
from .control import POLICIES, StashControl, describe_policy, policy_from_description
from .fixed import Stash
from .text import HELP, parse_stash


__all__ = ["HELP", "POLICIES", "AdaptiveStash", "AutoStash", "Stash", "StashControl",
           "describe_policy", "parse_stash", "policy_from_description"]
