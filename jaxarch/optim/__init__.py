"""Optimizers, schedules and loss scaling that match torch.optim step for step, under its names."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.optim.optimizer import (
    OPTIMIZERS,
    clip_by_global_norm,
    clip_by_value,
    create_optimizer,
    decays,
    hyper_parameters,
)
from jaxarch.optim.schedules import SCHEDULES, create_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "clip_by_global_norm",
    "clip_by_value",
    "create_optimizer",
    "create_schedule",
    "decays",
    "hyper_parameters",
]
