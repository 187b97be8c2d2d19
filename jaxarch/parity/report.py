"""Run cases and say what came out: numbers, JSON, HTML, a table."""

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from rich.console import Console

from jaxarch import catalog, html
from jaxarch.arrays import as_tensor
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import JaxarchError, require_torch
from jaxarch.files import write_whole
from jaxarch.parity import sides
from jaxarch.parity.compare import BOUND, Errors, compare, largest, structural_zeros
from jaxarch.parity.divergence import first_divergence
from jaxarch.parity.pair import Pair

MODES = ("eval", "train")


@dataclass(frozen=True)
class Case:
    """An architecture and one of its variants."""

    name: str
    variant: str


@dataclass(frozen=True)
class CaseResult:
    """What a comparison found. `weights` and `roundtrip` count tensors that differ in any bit; `outputs`,
    `gradients` and `training` are the largest relative errors, each the smallest bound that would pass."""

    name: str
    variant: str
    weights: float = 0.0
    roundtrip: float = 0.0
    outputs: float = math.inf
    gradients: float = math.inf
    training: float = math.inf
    seconds: float = 0.0
    ok: bool = False
    structural_zeros: tuple[str, ...] = ()
    detail: str = ""

    @property
    def minimum_bound(self) -> float:
        """The smallest bound under which the case would pass."""
        return max(self.outputs, self.gradients, self.training)


def cases(names: Iterable[str], variant: str | None = None) -> list[Case]:
    """The parity cases of architectures: each tiny variant, or the one named.

    Raises:
        UsageError: unknown name or variant.
    """
    found = []
    for name in names:
        if variant is not None:
            catalog.arguments(name, variant)
        found += [Case(name, v) for v in ([variant] if variant else catalog.page(name).cases)]
    return found


def check(
    torch_module: Any,
    nnx_module: nnx.Module,
    inputs: Mapping[str, np.ndarray],
    *,
    kinds: Mapping[str, str] | None = None,
    outputs: str = "features",
    modes: Sequence[str] = MODES,
    seed: int = 0,
) -> CaseResult:
    """Compare any torch module with any nnx module; the arguments are `Pair`'s, `modes` of "eval", "train".

    Raises:
        UsageError, ConversionError: the two cannot be compared at all.
    """
    pair = Pair(torch_module, nnx_module, inputs, kinds=kinds, outputs=outputs, seed=seed)
    return check_pair(pair, type(torch_module).__name__, "", modes)


def check_pair(pair: Pair, name: str, variant: str, modes: Sequence[str] = MODES) -> CaseResult:
    """Every comparison of one pair."""
    start = time.monotonic()
    weights, roundtrip = _weights(pair), _roundtrip(pair)
    outputs, gradients, training = Errors(), Errors(), Errors()
    optimizer = sides.Optimizer()
    zeros: set[str] = set()
    diverged = ""
    for mode in modes:
        train = mode == "train"
        pair.reset(train)
        if train:
            sides.check_dropouts(pair)
        masks = sides.draw_masks(pair) if train else {}
        ours = sides.jax_masks(pair, masks)
        jax_side = sides.JaxSide(pair, ours)
        cotangents = sides.draw_like_outputs(pair, masks, 1)
        a, b = sides.torch_pass(pair, masks, cotangents), jax_side.passed(cotangents)
        tiny = structural_zeros(a.parameters, b.parameters)
        zeros |= tiny
        outputs.add(f"{mode}: ", compare(a.outputs, b.outputs))
        outputs.add(f"{mode}, after: ", compare(*_shared(a.buffers, b.buffers)))
        found = compare(a.parameters, b.parameters, zeros=tiny, scale=largest(a.parameters))
        gradients.add(f"{mode}: ", found)
        gradients.add(f"{mode}, input ", compare(a.inputs, b.inputs))
        if a.parameters:
            targets = sides.draw_like_outputs(pair, masks, 2)
            c = sides.torch_train(pair, masks, targets, tiny)
            d = jax_side.trained(optimizer, targets, tiny)
            for field in ("parameters", "exp_avg", "exp_avg_sq"):
                training.add(f"{mode}, {field} ", compare(getattr(c, field), getattr(d, field)))
            training.add(f"{mode}, buffer ", compare(*_shared(c.buffers, d.buffers)))
        if not diverged and (outputs.failed() or gradients.failed()):
            diverged = first_divergence(pair, masks, ours, cotangents)
    failures = [
        f"{k} {e.by_name[k]:.1e}" + (f" ({e.why[k]})" if k in e.why else "")
        for e in (outputs, gradients, training)
        for k in e.failed()[:1]
    ]
    failures += [f"first divergence: {diverged}"] if diverged else []
    failures += [f"{w} weights differ" for w in [weights] if w] + [
        f"{r} keys differ" for r in [roundtrip] if r
    ]
    return CaseResult(
        name,
        variant,
        weights,
        roundtrip,
        outputs.worst,
        gradients.worst,
        training.worst,
        time.monotonic() - start,
        not failures,
        tuple(sorted(zeros)),
        "; ".join(failures),
    )


def run_cases(found: Sequence[Case], *, console: Console | None = None) -> list[CaseResult]:
    """Run cases one after another with a line for each; an error in one is that case's failure."""
    require_torch("parity")
    results = []
    for i, case in enumerate(found, 1):
        start = time.monotonic()
        try:
            result = check_pair(Pair.from_catalog(case.name, case.variant), case.name, case.variant)
        except Exception as e:  # a broken model must not hide the others' results
            text = str(e).strip().splitlines()[0] if str(e).strip() else ""
            detail = text if isinstance(e, JaxarchError) else f"{type(e).__name__}: {text}"
            result = CaseResult(case.name, case.variant, seconds=time.monotonic() - start, detail=detail)
        results.append(result)
        if console:
            verdict = "[green]ok[/]    " if result.ok else "[red]failed[/]"
            console.print(f"[{i}/{len(found)}] {verdict} {_line(result)}", highlight=False)
            if not result.ok:
                console.print(f"        {result.detail}", highlight=False, markup=False)
    if console:
        bound = max((r.minimum_bound for r in results), default=0.0)
        good = sum(r.ok for r in results)
        console.print(f"{good} of {len(results)} ok; the bound is {BOUND:.0e}, {bound:.1e} would do")
    return results


def to_json(results: Iterable[CaseResult]) -> list[dict[str, Any]]:
    """The results as plain data; errors are numbers, and an infinite one is the largest float."""
    rows = []
    for r in results:
        row = {**dataclasses.asdict(r), "minimum_bound": r.minimum_bound, "bound": BOUND}
        row["structural_zeros"] = list(r.structural_zeros)
        # JSON has no infinity.
        rows.append(
            {k: min(v, 1.7976931348623157e308) if isinstance(v, float) else v for k, v in row.items()}
        )
    return rows


def write_json(results: Iterable[CaseResult], path: str | Path) -> None:
    """Write the results as JSON; the file appears whole or not at all."""
    text = json.dumps(to_json(results), indent=2) + "\n"
    write_whole(Path(path), lambda temporary: Path(temporary).write_text(text))


def write_html(results: Sequence[CaseResult], path: str | Path) -> None:
    """Write the results as one self-contained page."""
    text = html.render("parity.html", results=results, bound=BOUND)
    write_whole(Path(path), lambda temporary: Path(temporary).write_text(text))


def _weights(pair: Pair) -> int:
    """How many tensors of our copy differ in any bit from torch's."""
    ours = to_state_dict(pair.model)
    return sum(ours[k].tobytes() != v.tobytes() for k, v in pair.known_weights().items() if k in ours)


def _roundtrip(pair: Pair) -> int:
    """How many tensors differ in any bit after torch -> jax -> torch -> jax."""
    first = to_state_dict(pair.model)
    own = pair.torch.state_dict()
    pair.torch.load_state_dict({**own, **{k: as_tensor(v) for k, v in first.items()}}, strict=True)
    again = nnx.clone(pair.model)
    load_state_dict(again, pair.known_weights())
    pair.torch.load_state_dict(pair.weights)
    second = to_state_dict(again)
    return sum(second[k].tobytes() != v.tobytes() for k, v in first.items())


def _shared(theirs: sides.Arrays, ours: sides.Arrays) -> tuple[sides.Arrays, sides.Arrays]:
    """Buffers that our model has; Flax's batch norm counts no batches, and torch may hold unsaved ones."""
    return {k: v for k, v in theirs.items() if k in ours}, ours


def _line(r: CaseResult) -> str:
    exact = "exact" if r.weights == r.roundtrip == 0 else f"{r.weights:.0f}, {r.roundtrip:.0f} differ"
    errors = f"outputs {r.outputs:.1e}  gradients {r.gradients:.1e}  training {r.training:.1e}"
    return f"{r.name} {r.variant}: weights {exact}  {errors}  {r.seconds:.1f} s"
