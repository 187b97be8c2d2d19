"""What each framework's side of a comparison computes, and the training that both run."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from jaxarch.parity.compare import Arrays

STEPS, LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, WARMUP = 5, 1e-3, 0.1, 0.1, 2


class Passed(NamedTuple):
    """One forward and backward pass, in torch's keys and axis orders: outputs, the gradients of parameters and of
    floating inputs, buffers after the call."""

    outputs: Arrays
    parameters: Arrays
    inputs: Arrays
    buffers: Arrays


class Trained(NamedTuple):
    """The state after the training steps, in torch's keys and layouts."""

    parameters: Arrays
    exp_avg: Arrays
    exp_avg_sq: Arrays
    buffers: Arrays


class Recorded(NamedTuple):
    """Outputs of modules and the gradients of these outputs, by module path, in each framework's axis order."""

    outputs: Arrays
    gradients: Arrays


class Side(ABC):
    """One framework's module of a pair in the pair's present mode, with dropout masks to take."""

    @abstractmethod
    def vjp(self, cotangents: Arrays) -> Passed:
        """Outputs, and the vector-Jacobian product with the cotangents for every parameter and floating input."""

    @abstractmethod
    def train(self, targets: Arrays, exact_zeros: set[str]) -> Trained:
        """Clipped AdamW steps on the mean squared error of the outputs.

        Gradients of the parameters named in `exact_zeros`, which are rounding, count as zero.
        """

    @abstractmethod
    def record(self, cotangents: Arrays) -> Recorded:
        """What each module's first call returns, and the gradient with respect to it."""


def first_of(output: Any) -> Any:
    """A module's output itself, or the first of a tuple (a recurrent layer's output before its state)."""
    return output[0] if type(output) is tuple and output else output
