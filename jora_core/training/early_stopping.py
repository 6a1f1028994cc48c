"""Early stopping: the best evaluation, and the number of evaluations without an improvement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyStopping:
    """State of early stopping after the evaluations so far.

    Attributes:
        best_step: step of the lowest validation loss, 0 before the first evaluation.
        best_loss: lowest validation loss.
        reference_loss: loss that the next evaluation must beat by `min_delta`. It may be higher than
            `best_loss`: several decreases below `min_delta` count as one improvement once their sum reaches
            `min_delta`.
        without_improvement: number of evaluations since the last improvement.
    """

    best_step: int = 0
    best_loss: float | None = None
    reference_loss: float | None = None
    without_improvement: int = 0

    def after(self, step: int, loss: float, min_delta: float) -> EarlyStopping:
        """Return the state after one more evaluation.

        Args:
            step: number of finished steps at the evaluation.
            loss: validation loss of the evaluation.
            min_delta: smallest decrease that counts as an improvement.
        """
        # Strictly lower: of equal losses the earliest step is the best.
        better = self.best_loss is None or loss < self.best_loss
        reference = self.reference_loss
        # The first test is needed for min_delta = 0, where an equal loss would pass the second.
        improved = reference is None or (loss < reference and reference - loss >= min_delta)
        return EarlyStopping(
            best_step=step if better else self.best_step,
            best_loss=loss if better else self.best_loss,
            reference_loss=loss if improved else self.reference_loss,
            without_improvement=0 if improved else self.without_improvement + 1,
        )

    def stops(self, patience: int | None) -> bool:
        """Return whether the last `patience` evaluations brought no improvement; never for None."""
        return patience is not None and self.without_improvement >= patience
