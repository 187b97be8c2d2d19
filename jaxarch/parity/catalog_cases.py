"""The parity cases of the catalog: their pairs, with random weights and inputs, and running them."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from jaxarch import catalog, state
from jaxarch.convert.layout import layout
from jaxarch.errors import DataError, JaxarchError, UsageError, require_torch
from jaxarch.parity.checks import CaseResult, check_pair
from jaxarch.parity.pair import Pair
from jaxarch.parity.report import print_result, print_summary
from jaxarch.spec import Page

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """An architecture and one of its variants."""

    name: str
    variant: str


def cases(names: Iterable[str], variant: str | None = None) -> list[Case]:
    """The parity cases of architectures: each tiny variant, or the one named.

    Raises:
        UsageError: unknown name or variant.
    """
    selected = []
    for name in names:
        if variant is not None:
            catalog.arguments(name, variant)
        selected += [Case(name, v) for v in ([variant] if variant else catalog.page(name).cases)]
    return selected


def run_cases(selected: Sequence[Case], *, console: Console | None = None) -> list[CaseResult]:
    """Run cases one after another with a line for each; an error in one is that case's failure.

    Raises:
        UsageError: there are no cases, or no torch.
    """
    require_torch("parity")
    if not selected:
        raise UsageError("no parity case to run: name an architecture with a tiny variant")
    results = []
    for number, case in enumerate(selected, 1):
        result = _run_case(case)
        results.append(result)
        if console:
            print_result(console, result, number, len(selected))
    if console:
        print_summary(console, results)
    return results


def _run_case(case: Case) -> CaseResult:
    start = time.monotonic()
    try:
        return check_pair(catalog_pair(case.name, case.variant), case.name, case.variant)
    except Exception as e:  # a broken model must not hide the others' results
        message = str(e).strip().splitlines()[0] if str(e).strip() else ""
        detail = message if isinstance(e, JaxarchError) else f"{type(e).__name__}: {message}"
        return CaseResult(case.name, case.variant, seconds=time.monotonic() - start, detail=detail)


def catalog_pair(name: str, variant: str, seed: int = 0) -> Pair:
    """The pair of an architecture's variant, with random weights, statistics and inputs.

    Raises:
        UsageError: unknown name or variant, or no torch.
    """
    torch = require_torch("parity")
    page = catalog.page(name)
    torch.manual_seed(seed)
    torch_module = catalog.create_model(name, variant, package="torchref").double()
    randomize(torch_module, seed)
    inputs = draw_inputs(page, catalog.arguments(name, variant), seed, variant=variant)
    return Pair(
        torch_module,
        unweighted(lambda: catalog.create_model(name, variant, rngs=seed)),
        inputs,
        kinds={k: v.kind for k, v in page.inputs.items()},
        outputs=page.outputs,
        seed=seed,
    )


def unweighted(build: Callable[[], nnx.Module]) -> nnx.Module:
    """The model of `build` with zeros for every weight that a state_dict holds.

    Initialisers are traced and not run one by one, which takes longer than the proof.
    """
    model = nnx.eval_shape(build)
    weights = {r.path for r in layout(model)}

    def random_streams() -> state.Flat:
        return {k: v for k, v in state.flat(nnx.state(build())).items() if k not in weights}

    leaves = state.flat(nnx.state(model))
    zeros = {k: jnp.asarray(np.zeros(v.shape, v.dtype)) for k, v in leaves.items() if k in weights}
    state.update(model, zeros | jax.jit(random_streams)())
    return model


def randomize(module: "torch.nn.Module", seed: int) -> None:
    """Move weights and statistics off their special first values (zeros, ones), in place."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype))
            elif key.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))


def draw_inputs(
    page: Page, arguments: Mapping[str, Any], seed: int, *, variant: str = ""
) -> dict[str, np.ndarray]:
    """Random inputs of a page in torch's axis order, the same for the same seed.

    Lengths are unsorted and hold 1 and the highest; masks have the prefixes of such lengths, labels are
    partly -100. Edges hold a self loop, parallel edges and none at the last node; one graph of a batch is
    empty.

    Raises:
        DataError: a shape or bound names no constructor argument.
    """
    rng = np.random.default_rng((seed, zlib.crc32(page.name.encode())))

    def size(value: int | str) -> int:
        if isinstance(value, int):
            return value
        if not isinstance(arguments.get(value), int):
            raise DataError(f"configs/{page.name}.toml: {value!r} is no integer argument of {page.cls}")
        return arguments[value]

    def lengths(count: int, high: int) -> np.ndarray:
        values = rng.integers(1, high + 1, count)
        values[rng.permutation(count)[:2]] = (high, 1)[:count]
        return values

    def edges(count: int, nodes: int) -> np.ndarray:
        values = rng.integers(0, max(nodes - 1, 1), (2, count))
        values[1, :1], values[:, 1:3] = values[0, :1], values[:, 1:2]
        return values

    def sizes(graphs: int, nodes: int) -> np.ndarray:
        parts = rng.multinomial(nodes, np.full(max(graphs - 1, 1), 1 / max(graphs - 1, 1)))
        return np.insert(parts, graphs // 2, 0) if graphs > 1 else parts

    inputs: dict[str, np.ndarray] = {}
    for key, spec in page.inputs_of(variant).items():
        shape = tuple(size(s) for s in spec.shape)
        match spec.kind:
            case "tokens":
                inputs[key] = rng.integers(0, size(spec.high), shape)
            case "labels":
                inputs[key] = np.where(rng.random(shape) < 0.2, -100, rng.integers(0, size(spec.high), shape))
            case "lengths":
                inputs[key] = lengths(shape[0], size(spec.high))
            case "edges":
                inputs[key] = edges(shape[-1], size(spec.high))
            case "sizes":
                inputs[key] = sizes(shape[0], size(spec.high))
            case "mask":
                inputs[key] = np.arange(shape[-1]) < lengths(shape[0], shape[-1])[:, None]
            case "time":
                inputs[key] = rng.random(shape)
            case _:
                inputs[key] = rng.normal(size=shape)
    return inputs
