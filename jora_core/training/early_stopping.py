"""What the validation losses so far say: which step was best, and whether it is time to stop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """Best step and loss so far, and how long no evaluation was better by enough.

    `mark` is the loss that the next one must beat by the least improvement; it is kept apart from
    `best_loss`, so that many small steps down do not count as standing still once they add up.
    """

    best_step: int = 0
    best_loss: float | None = None
    mark: float | None = None
    waited: int = 0

    def after(self, step: int, loss: float, min_delta: float) -> Standing:
        """The standing after one more evaluation."""
        better = self.best_loss is None or loss < self.best_loss
        enough = self.mark is None or (loss < self.mark and self.mark - loss >= min_delta)
        return Standing(
            best_step=step if better else self.best_step,
            best_loss=loss if better else self.best_loss,
            mark=loss if enough else self.mark,
            waited=0 if enough else self.waited + 1,
        )
