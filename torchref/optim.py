"""torch's optimizers by jaxarch's names, and Lion, which torch lacks."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum, with decoupled weight decay (Chen et al. 2023)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                exp_avg = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (b1 * exp_avg + (1 - b1) * p.grad).sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                exp_avg.mul_(b2).add_(p.grad, alpha=1 - b2)
        return loss


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "lion": Lion,
    "muon": torch.optim.Muon,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "asgd": torch.optim.ASGD,
    "lbfgs": torch.optim.LBFGS,
    "rprop": torch.optim.Rprop,
    "sparseadam": torch.optim.SparseAdam,
}


def create_optimizer(
    model: Module,
    kind: str = "adamw",
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimizer of the name `kind`; weights of two or more dims decay, biases and norms do not.

    `groups`: glob of parameter names -> `learning_rate`, `lr_scale`, `weight_decay` (which then applies to
    all of the group) or any option; the first glob that matches counts. The parameters carry their names into
    the state.
    """
    if kind == "lbfgs":  # which has a single group
        return torch.optim.LBFGS(model.named_parameters(), lr=learning_rate, **options)
    param_groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        glob = next((g for g in groups or {} if fnmatch.fnmatchcase(name, g)), "")
        fields = {"weight_decay": weight_decay if p.ndim > 1 else 0.0, **(groups or {}).get(glob, {})}
        fields["lr"] = fields.pop("learning_rate", learning_rate) * fields.pop("lr_scale", 1.0)
        decays = "weight_decay" in (groups or {}).get(glob, {}) or p.ndim > 1
        param_groups.setdefault((glob, decays), {"params": [], **fields})["params"].append((name, p))
    return OPTIMIZERS[kind](list(param_groups.values()), lr=learning_rate, **options)


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: Module, state: Mapping[str, Any]) -> None:
    """Set the state of every parameter from a mapping of parameter name -> slot -> array or number.

    A name that is missing or unexpected is a KeyError.
    """
    named = dict(model.named_parameters())
    if differ := named.keys() ^ state.keys():
        raise KeyError(f"the optimizer state does not fit the model: {', '.join(sorted(differ))}")
    for name, parameter in named.items():
        slots = {k: torch.as_tensor(v).to(dtype=parameter.dtype) for k, v in state[name].items()}
        # torch counts its steps, and multiplies NAdam's momenta, in float32 scalars.
        scalars = ("step", "mu_product")
        optimizer.state[parameter] = {k: v.float() if k in scalars else v.clone() for k, v in slots.items()}
