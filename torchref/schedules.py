"""torch's learning rate schedulers by jaxarch's names."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

FACTORS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
SCHEDULERS: dict[str, Callable[..., lr_scheduler.LRScheduler]] = {
    "step": lr_scheduler.StepLR,
    "multi_step": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "cosine_annealing": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "constant_factor": lr_scheduler.ConstantLR,
    "linear_factor": lr_scheduler.LinearLR,
    "swa": SWALR,
}
LENGTHS = {
    **dict.fromkeys(("polynomial", "constant_factor", "linear_factor"), "total_iters"),
    "cosine_annealing": "T_max",
}


def create_schedule(
    optimizer: torch.optim.Optimizer, kind: str, warmup_steps: int, total_steps: int, **options: Any
) -> lr_scheduler.LRScheduler:
    """A linear warm-up to the optimizer's learning rate and then a schedule of the name `kind`.

    To be stepped after each step of the optimizer.
    """
    if kind == "onecycle":
        max_lr = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps, **{"cycle_momentum": False, **options})

    if kind in ("sequential", "chained"):
        schedulers = [
            create_schedule(optimizer, table.pop("schedule"), 0, total_steps, **table)
            for table in map(dict, options["schedulers"])
        ]
        if kind == "chained":
            return lr_scheduler.ChainedScheduler(schedulers)
        return lr_scheduler.SequentialLR(optimizer, schedulers, options["milestones"])
    if kind == "cyclic":
        max_lr = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.CyclicLR(optimizer, max_lr=max_lr, **{"cycle_momentum": False, **options})

    def warmup(step: int) -> float:
        return (step + 1) / max(warmup_steps, 1)

    if kind in FACTORS:

        def factor(step: int) -> float:
            progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
            return warmup(step) if step < warmup_steps else FACTORS[kind](min(progress, 1.0))

        return lr_scheduler.LambdaLR(optimizer, factor)
    if kind in LENGTHS:
        options.setdefault(LENGTHS[kind], max(total_steps - warmup_steps, 1))
    if not warmup_steps:
        return SCHEDULERS[kind](optimizer, **options)
    warmup_schedule = lr_scheduler.LambdaLR(optimizer, warmup)
    return lr_scheduler.SequentialLR(
        optimizer, [warmup_schedule, SCHEDULERS[kind](optimizer, **options)], [warmup_steps]
    )
