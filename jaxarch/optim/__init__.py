"""Optimizers, schedules and loss scaling that match torch.optim step for step, under its names."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.optim.named import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
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
    "ASGD",
    "LBFGS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "clip_by_global_norm",
    "clip_by_value",
    "create_optimizer",
    "create_schedule",
    "decays",
    "hyper_parameters",
]
