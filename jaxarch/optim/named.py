"""torch.optim's optimizers as optax transformations, under torch's names, arguments, their order and defaults.

`params` is the one argument that is missing: optax takes the parameters in `init` and `update`, as any tree of
arrays. `lr` and every number may be a schedule. `foreach`, `fused`, `capturable` and `differentiable` choose among
torch's implementations: they are taken and have no effect, since there is one implementation, which is compiled,
differentiable and without side effects.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxarch.optim import adam, gradient, matrix
from jaxarch.optim.checks import check_options
from jaxarch.optim.lbfgs import lbfgs
from jaxarch.optim.transformation import Axes, Decays, Rule, Transformation, per_parameter

# A number, a traced one, or a schedule: a function of the number of updates so far.
Number = float | jax.Array | Callable[[Any], Any]
Betas = tuple[Number, Number]

RULES: dict[str, Rule] = {
    "Adadelta": gradient.ADADELTA,
    "Adafactor": matrix.ADAFACTOR,
    "Adagrad": gradient.ADAGRAD,
    "Adam": adam.ADAM,
    "AdamW": adam.ADAM,
    "Adamax": adam.ADAMAX,
    "ASGD": gradient.ASGD,
    "Lion": adam.LION,
    "Muon": matrix.MUON,
    "NAdam": adam.NADAM,
    "RAdam": adam.RADAM,
    "RMSprop": gradient.RMSPROP,
    "Rprop": gradient.RPROP,
    "SGD": gradient.SGD,
    "SparseAdam": adam.SPARSE_ADAM,
}
# What chooses among torch's implementations.
WITHOUT_EFFECT = ("foreach", "fused", "capturable", "differentiable")


def build(
    name: str, options: dict[str, Any], decays: Decays | None = None, axes: Axes | None = None
) -> Transformation:
    """The optimizer of torch's name, of all its options.

    Raises:
        UsageError: an option of the wrong type or out of range; at `init`, a parameter that it does not take.
    """
    options = dict(options)
    check_options(name, options)
    if name == "AdamW":
        options["decoupled_weight_decay"] = True
    if name == "LBFGS":
        return lbfgs(**options)
    return per_parameter(name, RULES[name], options, decays, axes)


def Adadelta(
    lr: Number = 1.0,
    rho: Number = 0.9,
    eps: Number = 1e-6,
    weight_decay: Number = 0,
    foreach: bool | None = None,
    *,
    capturable: bool = False,
    maximize: bool = False,
    differentiable: bool = False,
) -> Transformation:
    """torch.optim.Adadelta (Zeiler 2012)."""
    return build("Adadelta", locals())


def Adafactor(
    lr: Number = 1e-2,
    beta2_decay: Number = -0.8,
    eps: tuple[Number | None, Number] = (None, 1e-3),
    d: Number = 1.0,
    weight_decay: Number = 0.0,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    axes: Axes | None = None,
) -> Transformation:
    """torch.optim.Adafactor (Shazeer and Stern 2018), whose second moment is factored over torch's last two dims.

    Args:
        axes: path -> the permutation from torch's axes to JAX's, as `convert.layout` gives it. Without it matrices
            are (in, out), as those of `nn.Linear`, and other arrays in torch's order.
    """
    options = locals()
    return build("Adafactor", options, axes=options.pop("axes"))


def Adagrad(
    lr: Number = 1e-2,
    lr_decay: Number = 0,
    weight_decay: Number = 0,
    initial_accumulator_value: Number = 0,
    eps: Number = 1e-10,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
) -> Transformation:
    """torch.optim.Adagrad (Duchi et al. 2011)."""
    return build("Adagrad", locals())


def Adam(
    lr: Number = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 0,
    amsgrad: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    decoupled_weight_decay: bool = False,
) -> Transformation:
    """torch.optim.Adam (Kingma and Ba 2015; AMSGrad: Reddi et al. 2018)."""
    return build("Adam", locals())


def AdamW(
    lr: Number = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
) -> Transformation:
    """torch.optim.AdamW (Loshchilov and Hutter 2019)."""
    return build("AdamW", locals())


def Adamax(
    lr: Number = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 0,
    foreach: bool | None = None,
    *,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
) -> Transformation:
    """torch.optim.Adamax (Kingma and Ba 2015, section 7)."""
    return build("Adamax", locals())


def ASGD(
    lr: Number = 1e-2,
    lambd: Number = 1e-4,
    alpha: Number = 0.75,
    t0: Number = 1e6,
    weight_decay: Number = 0,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
) -> Transformation:
    """torch.optim.ASGD (Polyak and Juditsky 1992); the averaged parameters are the slot "ax" of its state."""
    return build("ASGD", locals())


def LBFGS(
    lr: Number = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
) -> Transformation:
    """torch.optim.LBFGS (Nocedal and Wright 2006, algorithms 7.5 and 3.5), see `jaxarch.optim.lbfgs`.

    torch's closure is `value_fn`: update(gradients, state, params, value=loss, value_fn=loss_of_params).
    """
    return build("LBFGS", locals())


def Lion(lr: Number = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: Number = 0.0) -> Transformation:
    """Lion (Chen et al. 2023), which torch lacks; as torchref.optim.Lion."""
    return build("Lion", locals())


def Muon(
    lr: Number = 1e-3,
    weight_decay: Number = 0.1,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[Number, Number, Number] = (3.4445, -4.775, 2.0315),
    eps: Number = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    axes: Axes | None = None,
) -> Transformation:
    """torch.optim.Muon (Jordan et al. 2024), in the weights' precision where torch rounds to bfloat16.

    Args:
        axes: as of `Adafactor`.
    """
    options = locals()
    return build("Muon", options, axes=options.pop("axes"))


def NAdam(
    lr: Number = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 0,
    momentum_decay: Number = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
) -> Transformation:
    """torch.optim.NAdam (Dozat 2016)."""
    return build("NAdam", locals())


def RAdam(
    lr: Number = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    weight_decay: Number = 0,
    decoupled_weight_decay: bool = False,
    *,
    foreach: bool | None = None,
    maximize: bool = False,
    capturable: bool = False,
    differentiable: bool = False,
) -> Transformation:
    """torch.optim.RAdam (Liu et al. 2019)."""
    return build("RAdam", locals())


def RMSprop(
    lr: Number = 1e-2,
    alpha: Number = 0.99,
    eps: Number = 1e-8,
    weight_decay: Number = 0,
    momentum: Number = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> Transformation:
    """torch.optim.RMSprop (Hinton's lecture 6e; centered: Graves 2013)."""
    return build("RMSprop", locals())


def Rprop(
    lr: Number = 1e-2,
    etas: tuple[Number, Number] = (0.5, 1.2),
    step_sizes: tuple[Number, Number] = (1e-6, 50),
    *,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> Transformation:
    """torch.optim.Rprop (Riedmiller and Braun 1993); `lr` is the size of the first step."""
    return build("Rprop", locals())


def SGD(
    lr: Number = 1e-3,
    momentum: Number = 0,
    dampening: Number = 0,
    weight_decay: Number = 0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    differentiable: bool = False,
    fused: bool | None = None,
) -> Transformation:
    """torch.optim.SGD, with momentum (Sutskever et al. 2013)."""
    return build("SGD", locals())


def SparseAdam(
    lr: Number = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Number = 1e-8,
    maximize: bool = False,
) -> Transformation:
    """torch.optim.SparseAdam: Adam of the entries that a sparse gradient has; the others' moments stay as they are.

    A gradient is a `jax.experimental.sparse.BCOO`, whose entries are torch's; or a dense array, whose entries are
    the rows that are not all zero: those of a table of embeddings that were looked up.
    """
    return build("SparseAdam", locals())
