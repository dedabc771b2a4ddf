"""What is known after one pass over the training images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        number: 1 for the first epoch of the training.
        train_loss: mean loss over the training images, each taken when its batch was trained on.
        train_accuracy: share of them classified correctly then, 0 to 1; of mixed images, as the class they mostly are.
        test_loss, test_accuracy: over the test images, after the epoch; NaN where there are none.
        lr: learning rate of the optimizer's first group at the first step.
        seconds: wall time of the training, evaluation not included.
        step_seconds: the part of `seconds` that went into `optimizer.step()`; on a GPU, the device's. NaN where steps
            were replayed from a CUDA graph.
        images_per_second: images trained on in `seconds`, by all processes.
        best: whether `test_accuracy` is the highest so far.
    """

    number: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    lr: float
    seconds: float
    step_seconds: float
    images_per_second: float
    best: bool

    @property
    def loss(self) -> float:
        """The training loss."""
        return self.train_loss

    @property
    def accuracy(self) -> float:
        """The accuracy on the test images."""
        return self.test_accuracy

    def row(self) -> dict[str, float]:
        """Returns the numbers by name, for `RunFolder.append`."""
        names = [name for name in self.__dataclass_fields__ if name not in ("number", "best")]
        return {"epoch": self.number, **{name: getattr(self, name) for name in names}}
