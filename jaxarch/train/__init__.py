"""Training: recipes and tasks, one loop, and checkpoints that are verified when read."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.train import losses
from jaxarch.train.loop import FitResult, fit

__all__ = ["FitResult", "fit", "losses"]
