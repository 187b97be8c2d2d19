"""Every tiny variant has pairwise different sizes. No test here names an architecture.

Where two sizes agree, a wrong transpose, reshape or layout still fits, and the comparison has less to say. A size
of a case is an integer that decides how long an axis is: a number in the shape of an input, an integer argument of
the constructor (in a tuple or a table each entry), a width divided by a number of heads. The rule has three parts.

1. Sizes are equal only where they are one quantity: where no part of the equal ones can be varied without the
   others. So the batch of all inputs is one quantity, as is a length that two inputs share or an image's size that
   an argument repeats, while a source and a target of one length, which may differ, fail.
2. No product of two sizes, a square included, equals a third size or another product, except that of the heads and
   the head size, which is the width. The heads divide no other size.
3. In no parameter, buffer or output of a module do two axes agree by accident: two that agree must still agree
   whatever size is varied, as those of attention's scores and of a square kernel do. This finds the sizes that no
   page writes: a map after its strides, twice a width.

"Can be varied" is tried out, on the reference and, before a test fails for it, on the model in JAX with its shape
annotations. 0 and 1 are no sizes: an axis of one is told from any other. Neither is an argument that changes the
shape of nothing when it is varied (depths, ids, settings of a schedule, what the variant leaves unused), nor one
in `NOT_SIZES`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxarch import catalog, parity
from jaxarch.parity.pair import channels_last

NOT_SIZES = {
    "*kernel_size*": "windows; where one is as long as another axis of its weight, part 3 finds it",
    "*setting.*": "rows of stages, which mix channels with factors, strides and counts; part 3 sees the channels",
    "round_nearest": "what channels are rounded to",
}

Place = tuple[Any, ...]  # ("argument", name, key, ...) or ("input", name, axis)
Shapes = dict[str, tuple[int, ...]]


class Sizes:
    """The sizes of a case by the place where they are set, and the shapes with some of them changed."""

    def __init__(self, name: str, variant: str, planted: Mapping[str, Any] | None = None):
        self.name, self.variant, self.planted = name, variant, dict(planted or {})
        self.page = catalog.page(name)
        self.arguments = catalog.arguments(name, variant, self.planted)
        self.inputs = self.page.inputs_of(variant)
        self.models: dict[str, Any] = {}
        self.base = self.shapes({})
        self.places: dict[Place, int] = {
            ("input", key, axis): size
            for key, entry in self.inputs.items()
            for axis, size in enumerate(entry.shape)
            if isinstance(size, int)
        }
        for path, value in integers(self.arguments):
            if value > 1 and self._is_size(("argument", *path), value):
                self.places["argument", *path] = value

    def quantities(self) -> dict[int, list[Place]]:
        """The places of each size."""
        found: dict[int, list[Place]] = {}
        for place, value in self.places.items():
            found.setdefault(value, []).append(place)
        return found

    def shapes(self, changed: Mapping[Place, int]) -> Shapes:
        """The shapes of parameters, buffers and modules' outputs of the reference; raises where it does."""
        model, inputs = self._prepared("torchref", changed)
        result: Shapes = {k: tuple(v.shape) for k, v in [*model.named_parameters(), *model.named_buffers()]}

        def hook(path: str) -> Any:
            def note(module: Any, arguments: Any, output: Any) -> None:
                for key, tensor in tensors(output):
                    result.setdefault(f"output{key} of {path or 'the model'}", tuple(tensor.shape))

            return note

        handles = [module.register_forward_hook(hook(path)) for path, module in model.named_modules()]
        try:
            with torch.no_grad():
                model(**{k: torch.from_numpy(v) for k, v in inputs.items()})
        finally:
            for handle in handles:
                handle.remove()
        return result

    def trace(self, changed: Mapping[Place, int]) -> None:
        """Trace the model in JAX, whose shape annotations are checked; raises where it does."""
        model, inputs = self._prepared("jaxarch", changed)
        arrays = {k: jnp.asarray(channels_last(v, self.inputs[k].kind)) for k, v in inputs.items()}
        nnx.eval_shape(lambda model, arrays: jax.tree.leaves(model(**arrays)), model, arrays)

    def varied(self, places: Sequence[Place], value: int) -> Shapes | None:
        """The shapes with another value in these places, or None if no other will do."""
        for other in (*greater(value), *smaller(value)):
            try:
                return self.shapes(dict.fromkeys(places, other))
            except Exception:  # any refusal is an answer
                continue
        return None

    def apart(self, places: Sequence[Place], value: int) -> bool:
        """Whether a greater and a smaller value in these places alone suit both packages."""
        return all(
            any(self._runs(dict.fromkeys(places, other)) for other in others)
            for others in (greater(value), smaller(value))
        )

    def _runs(self, changed: Mapping[Place, int]) -> bool:
        try:
            self.shapes(changed)
        except Exception:  # any refusal is an answer
            return False
        self.trace({})
        try:
            self.trace(changed)
        except Exception:
            return False
        return True

    def _is_size(self, place: Place, value: int) -> bool:
        if any(fnmatch(label(place), pattern) for pattern in NOT_SIZES):
            return False
        if is_heads(place):
            return True
        shapes = self.varied([place], value)
        return shapes is None or any(shapes.get(k, v) != v for k, v in self.base.items())

    def _prepared(self, package: str, changed: Mapping[Place, int]) -> tuple[Any, dict[str, np.ndarray]]:
        """A model in eval mode and inputs in torch's order of axes, both in float64."""
        overrides, inputs = dict(self.planted), dict(self.inputs)
        for (where, key, *path), value in changed.items():
            if where == "argument":
                overrides[key] = replaced(overrides.get(key, self.arguments[key]), path, value)
            else:
                shape = replaced(inputs[key].shape, path, value)
                inputs[key] = dataclasses.replace(inputs[key], shape=shape)
        key = f"{package} {overrides}"
        if key not in self.models:
            build = lambda: catalog.create_model(self.name, self.variant, package=package, **overrides)  # noqa: E731
            self.models[key] = build().double() if package == "torchref" else abstract(build)
            self.models[key].eval()
        page = dataclasses.replace(self.page, inputs=inputs, sizes={})
        drawn = parity.draw_inputs(page, {**self.arguments, **overrides}, 0, variant=self.variant)
        return self.models[key], drawn


def abstract(build: Callable[[], nnx.Module]) -> nnx.Module:
    """The model without its arrays, in float64."""
    graph, state = nnx.split(nnx.eval_shape(build))

    def double(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float64 if floating else leaf.dtype)

    return nnx.merge(graph, jax.tree.map(double, state))


def greater(value: int) -> tuple[int, ...]:
    return 2 * value, value + 1, value + 2, 3 * value


def smaller(value: int) -> tuple[int, ...]:
    return tuple(v for v in (value - 1, value - 2, value // 2) if v > 0)


def label(place: Place) -> str:
    """An argument by its dotted path, an axis of an input as x[1]."""
    return f"{place[1]}[{place[2]}]" if place[0] == "input" else ".".join(map(str, place[1:]))


def is_heads(place: Place) -> bool:
    """Whether the place counts heads, whose axis may never leave a module."""
    return place[0] == "argument" and "head" in str(place[-1])


def integers(value: Any, path: Place = ()) -> Iterator[tuple[Place, int]]:
    """The integers of nested containers by their paths."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, Mapping | list | tuple):
        for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from integers(entry, (*path, key))


def replaced(value: Any, path: Sequence[Any], new: int) -> Any:
    """Nested containers with another integer at a path."""
    if not path:
        return new
    entries = dict(value) if isinstance(value, Mapping) else list(value)
    entries[path[0]] = replaced(entries[path[0]], path[1:], new)
    return entries if isinstance(value, Mapping) else tuple(entries)


def tensors(output: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module's output by their paths."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, Mapping | list | tuple):
        for key, entry in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from tensors(entry, f"{path}[{key}]")


def equal_sizes(sizes: Sizes) -> list[str]:
    """What breaks part 1."""
    found = []
    for value, places in sizes.quantities().items():
        parts = (p for n in range(1, len(places)) for p in itertools.combinations(places, n))
        if alone := next((part for part in parts if sizes.apart(part, value)), None):
            rest = [p for p in places if p not in alone]
            found.append(f"{names(alone)} and {names(rest)} are both {value}")
    return found


def equal_products(sizes: Mapping[str, int], heads: Iterable[str] = ()) -> list[str]:
    """What breaks part 2, in sizes by name; `heads` name numbers of heads."""
    values, widths = dict(sizes), []
    for head, (name, size) in itertools.product(heads, sizes.items()):
        if name != head and size % sizes[head] == 0:
            values[f"{name} / {head}"] = size // sizes[head]
            widths.append({f"{name} / {head}", head})
    names_of: dict[int, list[str]] = {}
    for name, size in values.items():
        names_of.setdefault(size, []).append(name)
    for (a, x), (b, y) in itertools.combinations_with_replacement(values.items(), 2):
        if {a, b} not in widths:
            names_of.setdefault(x * y, []).append(f"{a} * {b}")
    return [f"{' = '.join(equal)} = {size}" for size, equal in names_of.items() if len(equal) > 1]


def accidents(sizes: Sizes) -> list[str]:
    """What breaks part 3."""
    found = {}
    pairs = {
        (key, i, j): shape
        for key, shape in sizes.base.items()
        for i, j in itertools.combinations(range(len(shape)), 2)
        if shape[i] == shape[j] > 1
    }
    for value, places in sizes.quantities().items():
        shapes = sizes.varied(places, value) or {}
        for (key, i, j), shape in pairs.items():
            other = shapes.get(key, shape)
            if len(other) == len(shape) and other[i] != other[j]:
                found[key, i, j] = f"axes {i} and {j} of {key} {shape} agree until {names(places)} varies"
    return list(found.values())


def names(places: Iterable[Place]) -> str:
    return ", ".join(map(label, places))


def products_of(sizes: Sizes) -> list[str]:
    """What breaks part 2."""
    first = {label(places[0]): value for value, places in sizes.quantities().items()}
    return equal_products(first, [label(p) for p in sizes.places if is_heads(p) and label(p) in first])


def test_sizes_differ(case: parity.Case) -> None:
    sizes = Sizes(case.name, case.variant)
    assert len(sizes.places) > 1
    for breaches in (equal_sizes(sizes), products_of(sizes), accidents(sizes)):
        assert not breaches, "; ".join(breaches)


CASES = parity.cases(catalog.list_models())


def case_params() -> list[Any]:
    """The cases, of which every tenth is not slow."""
    return [
        pytest.param(c, id=f"{c.name}-{c.variant}", marks=[pytest.mark.slow] if i % 10 else [])
        for i, c in enumerate(CASES)
    ]


@pytest.mark.parametrize("planted", case_params())
def test_an_argument_as_large_as_the_batch_is_found(planted: parity.Case) -> None:
    """The argument last in the call that can be varied is given the size of the first axis of the first input."""
    sizes = Sizes(planted.name, planted.variant)
    batch = next(v for p, v in sizes.places.items() if p[0] == "input")
    for place, value in reversed(sizes.places.items()):
        if place[0] == "argument" and len(place) == 2 and sizes.apart([place], value):
            try:
                changed = Sizes(planted.name, planted.variant, {place[1]: batch})
            except Exception:  # does not fit the others
                continue
            assert any(label(place) in found for found in equal_sizes(changed))
            return
    pytest.fail("no argument could be varied")


@pytest.mark.parametrize(
    ("sizes", "heads", "expected"),
    [
        ({"a": 2, "b": 3, "c": 5, "d": 7}, [], []),
        ({"a": 2, "b": 3, "c": 6}, [], ["c = a * b = 6"]),
        ({"a": 3, "b": 9}, [], ["b = a * a = 9"]),
        ({"a": 2, "b": 3, "c": 10, "d": 15}, [], ["a * d = b * c = 30"]),
        ({"heads": 2, "width": 10, "batch": 3}, ["heads"], []),
        ({"heads": 3, "width": 9, "batch": 2}, ["heads"], None),
        ({"heads": 2, "width": 10, "words": 22}, ["heads"], None),
    ],
)
def test_products(sizes: dict[str, int], heads: list[str], expected: list[str] | None) -> None:
    assert equal_products(sizes, heads) == expected or (expected is None and equal_products(sizes, heads))
