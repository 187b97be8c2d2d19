"""A minimal training loop, to be compared with that of `jaxarch.train` step for step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_

from torchref.optim import create_optimizer, load_optimizer_state


def train_steps(
    model: Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Module, Any], Tensor],
    *,
    learning_rate: float | Callable[[int], float],
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    optimizer_state: Mapping[str, Any] | None = None,
    start_step: int = 0,
    **options: Any,
) -> tuple[list[float], torch.optim.Optimizer]:
    """One clipped step of an optimizer for each batch: -> (losses, optimizer).

    `optimizer` is its kind, `options` are those of `create_optimizer`, groups with an `lr_scale` included.
    `learning_rate` is a number or a function of the step, which counts from `start_step`. `max_grad_norm` 0
    does not clip. `optimizer_state` is what `load_optimizer_state` takes, or torch's state_dict.
    """
    torch_optimizer = create_optimizer(
        model, optimizer, learning_rate=1.0, weight_decay=weight_decay, **options
    )
    scales = [group["lr"] for group in torch_optimizer.param_groups]
    if optimizer_state is not None and "param_groups" in optimizer_state:
        torch_optimizer.load_state_dict(dict(optimizer_state))
    elif optimizer_state is not None:
        load_optimizer_state(torch_optimizer, model, optimizer_state)
    losses = []
    for step, batch in enumerate(batches, start_step):
        for group, scale in zip(torch_optimizer.param_groups, scales, strict=True):
            group["lr"] = scale * (learning_rate(step) if callable(learning_rate) else learning_rate)
        torch_optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        if max_grad_norm > 0:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        torch_optimizer.step()
        losses.append(loss.item())
    return losses, torch_optimizer
