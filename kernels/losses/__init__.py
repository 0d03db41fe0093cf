"""Losses by name: each file here declares one, and so does any other module that calls `kernels.loss.loss`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ringtmp.registry import Registry


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes
    ----------
    name : str
    target : str
        ``classes``: labels are int64 numbers of classes, one for each prediction, that is for each row of numbers along
        the last axis of the outputs. ``values``: labels are a row of numbers for each sample, as many as its outputs.
    probabilities : str or None
        Operator of ONNX that makes probabilities of the outputs, if any does.
    gives_r2 : bool
        Whether R2 is 1 - loss / (what the targets' mean would lose): of squared errors alone.
    evaluate : callable
        ``loss, correct = evaluate(outputs[m, c], labels, scale)``: the loss summed over the m predictions, and right
        answers among them (NaN where the target is a value). With `scale` above 0 the outputs become the gradient of
        `scale` times the sum; otherwise they stay. Labels are [m], or [m, c] for values.
    """

    name: str
    target: Literal["classes", "values"]
    probabilities: str | None
    gives_r2: bool
    evaluate: Callable[..., tuple[float, float]]

    @property
    def of_classes(self) -> bool:
        """Whether the target is a class."""
        return self.target == "classes"

    def label_dtype(self, dtype: Any) -> Any:
        """Dtype of labels in a run whose numbers are of `dtype`."""
        return "int64" if self.of_classes else dtype


LOSSES: Registry[Loss] = Registry("loss", __name__)
