"""The command `jaxarch`. Thin: each command calls the library and prints what it returns."""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxarch import catalog
from jaxarch.errors import JaxarchError, UsageError, nearest, unknown
from jaxarch.runtime import configure_jax, keep_freed_memory
from jaxarch.spec import FAMILIES


class Parser(argparse.ArgumentParser):
    """Errors are one line, with the nearest command or option for a typo."""

    def error(self, message: str):
        known = [s for a in self._actions for s in a.option_strings]
        if "invalid choice" in message and self._subparsers is not None:
            commands = next(a for a in self._actions if isinstance(a, argparse._SubParsersAction)).choices
            message = str(unknown("command", message.split("'")[1], commands))
        elif message.startswith("unrecognized arguments:"):
            culprit = message.split(": ", 1)[1].split()[0]
            near = nearest(culprit.split("=")[0], known)
            message = f"unknown option {culprit!r}" + (f": did you mean {' or '.join(near)}?" if near else "")
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit status: 0, 1 for a failure, 2 for a wrong call."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if argv is None:
        keep_freed_memory()  # of a process of ours, not of one that calls us
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest:
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args) or 0
    except JaxarchError as e:
        print(f"jaxarch: error: {e}", file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        print("jaxarch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def build_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="jaxarch", description="The same model in PyTorch and Flax NNX, and the proof.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = command("list", list_command, "List the architectures of the catalog.")
    sub.add_argument("--family", metavar="F", help=f"one of {', '.join(FAMILIES)}")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("show", show_command, "Show a model's modules, shapes, parameters and FLOPs.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--variant", metavar="V", help="default: the one its page trains")

    sub.add_argument("--features", metavar="IMAGE", help="draw the feature maps of a picture instead")
    sub.add_argument("--weights", metavar="RUN", help="with --features: a trained run; default: random")
    sub.add_argument("--out", metavar="FILE", help="with --features: the PNG; default: features.png")

    sub = command("parity", parity_command, "Prove that the torch and the Flax model are the same.")
    sub.add_argument("names", metavar="NAME", nargs="*")
    sub.add_argument("--family", metavar="F", help=f"one of {', '.join(FAMILIES)}")
    sub.add_argument("--all", action="store_true", help="every architecture")
    sub.add_argument("--variant", metavar="V", help="only this variant; default: every tiny one")
    text = "write JSON; without FILE, to stdout"
    sub.add_argument("--json", metavar="FILE", nargs="?", const="-", help=text)
    sub.add_argument("--html", metavar="FILE", help="write a report")

    sub = command("convert", convert_command, "Convert weights between torch, safetensors and orbax.")
    sub.add_argument("source", metavar="SRC", help=".safetensors, .pt, .pth, or a checkpoint folder")
    sub.add_argument("target", metavar="DST", help=".safetensors, .pt, .pth, or a new folder")
    sub.add_argument("--model", metavar="NAME", help="default: what a checkpoint folder says of itself")
    sub.add_argument("--variant", metavar="V")
    sub.add_argument("--average", action="store_true", help="of a run: its averaged weights (train.ema)")

    sub = command("train", train_command, "Train a model by its page's recipe.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--variant", metavar="V", help="default: the one its page trains")
    sub.add_argument("--recipe", metavar="R", help="a table [recipes.R] of its page; default: [train]")
    text = "for example data=2,fsdp=2,tensor=2; default: data over all devices"
    sub.add_argument("--mesh", metavar="AXES", help=text)
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="train.lr=3e-4, ...")
    sub.add_argument("--out", default=None, metavar="DIR", help="default: runs/NAME")
    sub.add_argument("--resume", action="store_true", help="continue from the newest intact checkpoint")

    sub = command("generate", generate_command, "Continue a text with a trained language model.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `jaxarch train` wrote")
    sub.add_argument("--prompt", required=True, metavar="TEXT")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 is greedy")
    sub.add_argument("--top-k", type=int, metavar="K")
    sub.add_argument("--top-p", type=float, metavar="P")
    sub.add_argument("--seed", type=int, default=0, metavar="S")

    sub = command("sample", sample_command, "Draw pictures with a trained generative model.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `jaxarch train` wrote")
    sub.add_argument("--n", type=int, default=64, metavar="N")
    sub.add_argument("--seed", type=int, default=0, metavar="S")
    sub.add_argument("--out", default="sheet.png", metavar="FILE", help="default: sheet.png")
    sub.add_argument("--class", type=int, dest="label", metavar="C", help="default: all in turn")
    sub.add_argument("--guidance", type=float, metavar="X", help="1: the class as it is; more: more of it")
    sub.add_argument("--steps", type=int, metavar="N", help="steps of a diffusion model; default: 50")

    sub = command("bench", bench_command, "Time training steps against torch, eager and compiled.")
    sub.add_argument("names", metavar="NAME", nargs="+", help="a model, a variant, or lstm, gru, ...")
    sub.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    sub.add_argument("--repeat", type=int, default=7, metavar="N", help="rounds; the median counts")
    text = "write JSON; without FILE, to stdout"
    sub.add_argument("--json", metavar="FILE", nargs="?", const="-", help=text)

    sub = command("demo", demo_command, "Train sharded, interrupt, resume, convert, prove, generate, report.")
    sub.add_argument("--out", default="runs/demo", metavar="DIR")
    sub.add_argument("--steps", type=int, metavar="N", help="training steps; default: the page's")
    return parser


def list_command(args) -> int:
    pages = [catalog.page(name) for name in catalog.list_models(args.family)]
    if args.json:
        keys = ("name", "cls", "family", "paper", "variants")
        rows = [{("class" if k == "cls" else k): getattr(p, k) for k in keys} for p in pages]
        print(json.dumps([{**r, "variants": list(r["variants"])} for r in rows], indent=2))
        return 0
    table = Table("name", "class", "family", "variants", "paper")
    for p in pages:
        table.add_row(p.name, p.cls, p.family, ", ".join(p.variants), p.paper)
    Console().print(table)
    return 0


def show_command(args) -> int:
    from jaxarch.commands.show import summarize

    name, variant = catalog.find(args.name)
    variant = args.variant or variant
    if args.features:
        from jaxarch.commands.features import draw_features

        out = args.out or "features.png"
        maps = draw_features(name, args.features, out, variant=variant, weights=args.weights)
        print(f"{len(maps)} maps of {name}")
        print(out)
        return 0
    if args.weights or args.out:
        raise UsageError("--weights and --out have no effect without --features")
    rows = summarize(name, variant)
    table = Table("module", "class", "parameters", "FLOPs", "shapes")
    for r in rows[1:]:
        shapes = "  ".join(f"{k} {list(s)}" for k, s in r.shapes.items())
        table.add_row(r.path, r.cls, f"{r.parameters:,}", f"{r.flops:,}", shapes)
    Console().print(table)
    variant = variant or catalog.default_variant(name)
    total = rows[0]
    print(f"{name} {variant}: {total.parameters:,} parameters, {total.flops:,} FLOPs forward")
    return 0


def parity_command(args) -> int:
    if args.all + bool(args.family) + bool(args.names) != 1:
        raise UsageError("parity takes model names, --family F or --all: one of the three")
    names = args.names or catalog.list_models(args.family)
    configure_jax(cpu=True, x64=True)
    from jaxarch import parity

    cases = parity.cases(names, args.variant)
    if not cases:
        raise UsageError(f"no architecture in family {args.family!r} yet")
    results = parity.run_cases(cases, console=Console(stderr=args.json == "-"))
    if args.json == "-":
        print(json.dumps(parity.to_json(results), indent=2))
    elif args.json:
        parity.write_json(results, args.json)
    if args.html:
        parity.write_html(results, args.html)
    return 0 if all(r.ok for r in results) else 1


def convert_command(args) -> int:
    from jaxarch.commands.convert import convert

    report = convert(args.source, args.target, model=args.model, variant=args.variant, average=args.average)
    print(report)
    return 0


def train_command(args) -> int:
    settings = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r}: write KEY=VALUE, for example train.lr=3e-4")
        settings[key] = value
    from jaxarch.parallel import mesh
    from jaxarch.train import loop
    from jaxarch.train.recipe import recipe_of

    # What is wrong with the call is said before a device is opened.
    devices = mesh.size(mesh.parse_mesh(args.mesh)) if args.mesh else 0
    name, variant = catalog.find(args.name)
    variant = args.variant or variant
    recipe_of(name, variant, settings, args.recipe)
    configure_jax(devices=devices)
    result = loop.fit(
        name,
        variant=variant,
        settings=settings,
        mesh=args.mesh,
        out=args.out or f"runs/{args.name}",
        recipe=args.recipe,
        resume=args.resume,
    )
    print("  ".join(f"{k} {v:.4f}" for k, v in result.metrics.items()))
    print(result.out)
    return 0


def generate_command(args) -> int:
    from jaxarch.commands.generate import continue_text

    text = continue_text(
        args.checkpoint,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    print(text)
    return 0


def sample_command(args) -> int:
    from rich.progress import Progress

    from jaxarch.commands.sample import sample, write_sheet

    if Path(args.out).suffix != ".png":
        raise UsageError(f"--out {args.out}: a sheet is written as .png")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sampling", total=None)
        images = sample(
            args.checkpoint,
            args.n,
            seed=args.seed,
            label=args.label,
            guidance=args.guidance,
            steps=args.steps,
            progress=lambda number: bar.update(task, completed=int(number) + 1, total=args.steps or 50),
        )
    write_sheet(args.out, images)
    print(args.out)
    return 0


def bench_command(args) -> int:
    from jaxarch import bench
    from jaxarch.files import write_whole

    console, timings = Console(stderr=args.json == "-"), []
    for name in args.names:
        for contest in bench.contests(name, compiled=not args.no_compile):
            timings.append(timing := bench.measure(contest, args.repeat))
            rates = timing.tokens_per_second
            table = Table(timing.name, "median ms", "ours / theirs", *(["tokens / s"] if rates else []))
            for label, seconds in timing.seconds.items():
                ratio = f"{timing.ratio[label]:.2f}" if label in timing.ratio else ""
                rate = [f"{rates[label]:,.0f}"] if rates else []
                table.add_row(label, f"{1e3 * seconds:.1f}", ratio, *rate)
            console.print(table)
    found = json.dumps([dataclasses.asdict(t) for t in timings], indent=2)
    if args.json == "-":
        print(found)
    elif args.json:
        write_whole(Path(args.json), lambda temporary: Path(temporary).write_text(found))
    return 0


def demo_command(args) -> int:
    from jaxarch.errors import require_torch

    require_torch("the demo")
    configure_jax(cpu=True, devices=8)
    import torchref.generate
    import torchref.train
    from jaxarch.commands import demo

    return demo.run(Path(args.out), steps=args.steps, reference=torchref)


if __name__ == "__main__":
    sys.exit(main())
