"""Early stopping: which evaluation was best, and how many came since without an improvement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyStopping:
    """What the validation losses so far say.

    Attributes:
        best_step: step of the lowest validation loss, 0 before the first evaluation.
        best_loss: that loss.
        reference_loss: loss that the next evaluation must beat by `min_delta`. It is apart from `best_loss`:
            many improvements below `min_delta` count as one once their sum reaches it.
        without_improvement: evaluations since `reference_loss` was beaten.
    """

    best_step: int = 0
    best_loss: float | None = None
    reference_loss: float | None = None
    without_improvement: int = 0

    def after(self, step: int, loss: float, min_delta: float) -> EarlyStopping:
        """Return the state after one more evaluation.

        Args:
            step: steps done at the evaluation.
            loss: validation loss.
            min_delta: smallest decrease that counts as an improvement.
        """
        # Strictly lower: of equal losses the earliest step is the best.
        better = self.best_loss is None or loss < self.best_loss
        reference = self.reference_loss
        # The first test matters for min_delta = 0, where an equal loss would pass the second.
        improved = reference is None or (loss < reference and reference - loss >= min_delta)
        return EarlyStopping(
            best_step=step if better else self.best_step,
            best_loss=loss if better else self.best_loss,
            reference_loss=loss if improved else self.reference_loss,
            without_improvement=0 if improved else self.without_improvement + 1,
        )

    def stops(self, patience: int | None) -> bool:
        """Tell whether `patience` evaluations in a row brought no improvement; None never stops."""
        return patience is not None and self.without_improvement >= patience
