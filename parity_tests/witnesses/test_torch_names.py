"""Every class of torch.nn and function of torch.nn.functional: here with the same arguments, or with a reason."""

import inspect
import types

import pytest
import torch

from jaxarch import nn
from jaxarch.nn import functional
from no_meaning import CLASSES, FUNCTIONS, OTHER_ARGUMENTS

PLACEMENT = ("device", "dtype")  # JAX's are global
HELPERS = ("torch.overrides", "torch._jit_internal", "typing")  # from where torch.nn.functional has its tools


def classes():
    """torch.nn's classes by name, those of its parts included."""
    names = {n for n, v in vars(torch.nn).items() if isinstance(v, type)} | set(torch.nn.modules.__all__)
    return {n: getattr(torch.nn, n, None) or getattr(torch.nn.modules, n) for n in sorted(names)}


def functions():
    """torch.nn.functional's functions by name, without its helpers; a pool's by the variant with indices."""
    public = {n: v for n, v in vars(torch.nn.functional).items() if not n.startswith("_") and callable(v)}
    public = {n: v for n, v in sorted(public.items()) if not isinstance(v, type | types.ModuleType)}
    own = {
        n: v
        for n, v in public.items()
        if not str(v.__module__).startswith(HELPERS) and not n.startswith("has_torch_function")
    }
    return {n: public.get(f"{n}_with_indices", v) for n, v in own.items()}


def arguments(call, skipped):
    """The names and defaults of a call's arguments, and which of them are by name only."""
    parameters = [p for p in inspect.signature(call).parameters.values() if p.name not in ("self", *skipped)]
    return [(p.name, getattr(p.default, "__name__", p.default), p.kind) for p in parameters]


def same_arguments(theirs, ours, skipped=()):
    """Whether both have the same, and what each has; True where torch's are not written down."""
    if isinstance(theirs, type):
        theirs, ours = theirs.__init__, ours.__init__
    try:
        expected = arguments(theirs, skipped)
    except ValueError:  # a builtin
        return True, [], []
    actual = arguments(ours, ("rngs",))
    anything = {kind for *_, kind in expected} == {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    return anything or actual == expected, actual, expected


CLASSES_HERE = {n: c for n, c in classes().items() if hasattr(nn, n)}
FUNCTIONS_HERE = {n: f for n, f in functions().items() if hasattr(functional, n)}


def test_every_class_is_here_or_has_a_reason():
    assert len(classes()) > 150
    assert {n for n in classes() if not hasattr(nn, n)} == CLASSES.keys()


def test_every_function_is_here_or_has_a_reason():
    assert len(functions()) > 120
    assert {"conv2d", "relu", "linear_cross_entropy", "max_pool2d"} <= functions().keys()
    assert {n for n in functions() if not hasattr(functional, n)} == FUNCTIONS.keys()


@pytest.mark.parametrize("module", sorted(CLASSES_HERE))
def test_same_constructor(module):
    same, *both = same_arguments(CLASSES_HERE[module], getattr(nn, module), PLACEMENT)
    assert same == (module not in OTHER_ARGUMENTS), both


@pytest.mark.parametrize("module", sorted(CLASSES_HERE))
def test_calls_have_torchs_names(module):
    """The arguments of a call begin with those of torch's forward; containers have no call of their own."""
    theirs, ours = (
        getattr(c, f, None) for c, f in ((CLASSES_HERE[module], "forward"), (getattr(nn, module), "__call__"))
    )
    if theirs is None or theirs is torch.nn.Module.forward or module.startswith("Lazy"):  # those take any
        return
    names = [[name for name, *_ in arguments(f, ("args", "kwargs"))] for f in (theirs, ours)]
    assert names[1][: len(names[0])] == names[0]


@pytest.mark.parametrize("function", sorted(FUNCTIONS_HERE))
def test_same_arguments(function):
    same, *both = same_arguments(FUNCTIONS_HERE[function], getattr(functional, function))
    assert same == (function not in OTHER_ARGUMENTS), both


def test_every_line_of_the_table_is_met():
    assert OTHER_ARGUMENTS.keys() <= CLASSES_HERE.keys() | FUNCTIONS_HERE.keys()
    assert all(
        reason and "\n" not in reason
        for table in (CLASSES, FUNCTIONS, OTHER_ARGUMENTS)
        for reason in table.values()
    )
