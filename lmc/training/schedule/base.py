"""What a learning-rate schedule is."""

from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate schedule: a pure function of time.

    Attributes:
        after_warmup: whether its clock starts where the warm-up ends (and its `epochs` are those that remain), or at
            the first epoch (milestones that are counted from the start of the training).
    """

    after_warmup: ClassVar[bool]

    def factor(self, epoch: float, epochs: float) -> float:
        """Return what the learning rate is multiplied by.

        Args:
            epoch: time since the start in epochs, in [0, epochs); step s of n in epoch e (from 0) is at e + s / n.
            epochs: how many epochs there are.
        """
        ...
