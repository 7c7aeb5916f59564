"""How many ranks Ray Train starts in a Ray of the run's own: as many as the driver said. Imported by its controller."""

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class FixedSize(FixedScalingPolicy):
    """Asks no autoscaler for machines: there is one machine, and the actor that would be asked is a process more, for
    which the first rank would wait."""

    def _send_resource_request(self) -> None: ...
    def _maybe_send_resource_request(self) -> None: ...
    def _cancel_resource_request(self) -> None: ...
