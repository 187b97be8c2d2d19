"""Training: one loop with tasks, optax steps that are torch's, checkpoints that can be trusted."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.train.loop import FitResult, fit

__all__ = ["FitResult", "fit"]
