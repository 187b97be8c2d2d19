"""The smallest training loop that can be compared with jaxarch's, step for step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_


def create_optimizer(model: Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; weights of two or more dimensions decay, biases and norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate)


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: Module, state: Mapping[str, Any]) -> None:
    """Set the state of every parameter from a mapping of parameter name -> slot -> array or number.

    A name that is missing or unexpected is a KeyError.
    """
    named = dict(model.named_parameters())
    if differ := named.keys() ^ state.keys():
        raise KeyError(f"optimizer state does not fit the model: {', '.join(sorted(differ))}")
    for name, parameter in named.items():
        slots = {k: torch.as_tensor(v).to(dtype=parameter.dtype) for k, v in state[name].items()}
        # Adam counts its steps in a float32 scalar.
        optimizer.state[parameter] = {k: v.float() if k == "step" else v.clone() for k, v in slots.items()}


def train_steps(
    model: Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Module, Any], Tensor],
    *,
    learning_rate: float | Callable[[int], float],
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    optimizer_state: Mapping[str, Any] | None = None,
    start_step: int = 0,
) -> tuple[list[float], torch.optim.AdamW]:
    """One clipped AdamW step for each batch: -> (losses, optimizer).

    `learning_rate` is a number or a function of the step, which counts from `start_step`. `max_grad_norm` 0
    does not clip. `optimizer_state` is what `load_optimizer_state` takes.
    """
    optimizer = create_optimizer(model, learning_rate=0.0, weight_decay=weight_decay)
    if optimizer_state is not None:
        load_optimizer_state(optimizer, model, optimizer_state)
    losses = []
    for step, batch in enumerate(batches, start_step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) if callable(learning_rate) else learning_rate
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        if max_grad_norm > 0:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer
