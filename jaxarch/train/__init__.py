"""Training: one loop with tasks, optax steps that are torch's, checkpoints that can be trusted."""

from jaxarch.train.loop import FitResult, fit

__all__ = ["FitResult", "fit"]
