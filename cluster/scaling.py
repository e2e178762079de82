"""How many replicas a model should have: enough that each has its target of sequences under way.

Serve's own rule counts calls, but a call here carries any number of sequences. Serve sends the
function by value to its controller, so it refers to nothing of this project but a name.
"""

from typing import TYPE_CHECKING, Any

from actors.replica import SEQUENCES
from actors.spec import Autoscaling

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

# Over so many seconds the sequences under way are averaged; Serve wants more than ten.
LOOK_BACK_S = 12.0


def replicas_wanted(context: Any) -> tuple[float, dict[str, Any]]:
    """Serve's `AutoscalingPolicy`: the number of replicas, to be rounded up, and no state.

    Before the replicas have said anything, what is there is right.
    """
    under_way = (context.aggregated_metrics or {}).get(SEQUENCES)
    if not under_way:
        return context.target_num_replicas, {}
    return sum(under_way.values()) / context.config.target_ongoing_requests, {}


def autoscaling_config(scaling: Autoscaling) -> "AutoscalingConfig":
    """What Serve is told."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return AutoscalingConfig(
        min_replicas=scaling.least,
        initial_replicas=max(1, scaling.least),
        max_replicas=scaling.most,
        target_ongoing_requests=scaling.target,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        look_back_period_s=LOOK_BACK_S,
        policy=AutoscalingPolicy(policy_function=replicas_wanted),
    )
