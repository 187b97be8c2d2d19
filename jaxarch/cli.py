"""The command `jaxarch`: the parser, the choice of a command, and the exit status.

A command's body is `run(args)` of the file of its name in `jaxarch/commands`, imported when it is chosen.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import jaxarch
from jaxarch.errors import JaxarchError, nearest, unknown
from jaxarch.runtime import keep_freed_memory
from jaxarch.spec import FAMILIES

JSON_HELP = "write JSON; without FILE, to stdout"


class Parser(argparse.ArgumentParser):
    """Errors are one line, with the nearest command or option for a typo."""

    def error(self, message: str) -> NoReturn:
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
    args, extra = build_parser().parse_known_args(argv)
    if extra:
        args.parser.error(f"unrecognized arguments: {' '.join(extra)}")
    try:
        return importlib.import_module(f"jaxarch.commands.{args.command}").run(args)
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
    parser.add_argument("--version", action="version", version=f"jaxarch {jaxarch.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(parser=sub)
        return sub

    sub = command("list", "List the architectures of the catalog.")
    sub.add_argument("--family", metavar="F", help=f"one of {', '.join(FAMILIES)}")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("show", "Show a model's modules, shapes, parameters and FLOPs.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--variant", metavar="V", help="default: the one its page trains")
    sub.add_argument("--features", metavar="IMAGE", help="draw the feature maps of an image instead")
    sub.add_argument("--weights", metavar="RUN", help="with --features: a trained run; default: random")
    sub.add_argument("--out", metavar="FILE", help="with --features: the PNG; default: features.png")

    sub = command("parity", "Prove that the torch and the Flax model are the same.")
    sub.add_argument("names", metavar="NAME", nargs="*")
    sub.add_argument("--family", metavar="F", help=f"one of {', '.join(FAMILIES)}")
    sub.add_argument("--all", action="store_true", help="every architecture")
    sub.add_argument("--variant", metavar="V", help="only this variant; default: every tiny one")
    sub.add_argument("--json", metavar="FILE", nargs="?", const="-", help=JSON_HELP)
    sub.add_argument("--html", metavar="FILE", help="write a report")

    sub = command("convert", "Convert weights and runs between torch, safetensors, orbax and Hugging Face.")
    text = "a weight file, a run or checkpoint folder, hf:FOLDER or hf:ORG/NAME@REVISION"
    sub.add_argument("source", metavar="SRC", help=text)
    sub.add_argument("target", metavar="DST", help="a weight file, a new folder, or hf:FOLDER")
    text = "an architecture, or the path of a page of yours; default: what the source says it holds"
    sub.add_argument("--model", metavar="NAME", help=text)
    sub.add_argument("--variant", metavar="V", help="default: the one the source or its page names")
    text = "a constructor argument that differs from the variant's, such as n_embd=1024"
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    text = "of a run: the exponential moving average of its weights (train.ema)"
    sub.add_argument("--average", action="store_true", help=text)
    text = "of a file with several sets of weights, the one to take, such as ema"
    sub.add_argument("--part", metavar="KEY", help=text)
    text = "of names in the source, such as module. or _orig_mod."
    sub.add_argument("--strip-prefix", metavar="P", help=text)
    text = "rules from the source's names to the model's (docs/conversion.md)"
    sub.add_argument("--rename", metavar="RULES.toml", help=text)
    text = "rules whose torch side are the target's names; applied backwards"
    sub.add_argument("--rename-back", metavar="RULES.toml", help=text)
    text = "names that the source may lack; in a checkpoint they are initialised"
    sub.add_argument("--allow-missing", action="append", default=[], metavar="GLOB", help=text)
    text = "names that the model lacks; they are dropped and named"
    sub.add_argument("--allow-unexpected", action="append", default=[], metavar="GLOB", help=text)
    text = "cast floats, to the nearest, ties to even; default: every tensor keeps its dtype"
    sub.add_argument("--dtype", choices=("bf16", "f16", "f32"), help=text)
    text = "the most bytes of a safetensors file; default: one file, in hf: folders 5GB"
    sub.add_argument("--shard-size", metavar="SIZE", help=text)
    sub.add_argument("--force", action="store_true", help="overwrite the target")
    text = "read the target back and compare it with the source"
    sub.add_argument("--verify", action="store_true", help=text)
    text = "say what would be written, and write nothing"
    sub.add_argument("--dry-run", action="store_true", help=text)
    sub.add_argument("--json", metavar="FILE", nargs="?", const="-", help=JSON_HELP)

    sub = command("inspect", "List the tensors of a file or folder of any format; none is loaded.")
    sub.add_argument("path", metavar="PATH", help="a weight file, the index of its shards, or a folder")
    sub.add_argument("--verify", action="store_true", help="read all and compare with the recorded hashes")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("diff", "Compare two checkpoints of any formats, tensor by tensor; 1 if they differ.")
    sub.add_argument("a", metavar="A", help="a weight file, the index of its shards, or a folder")
    sub.add_argument("b", metavar="B", help="likewise")
    text = "absolute difference that counts as none; default: 0, every bit counts"
    sub.add_argument("--atol", type=float, default=0.0, metavar="X", help=text)
    sub.add_argument("--ignore-dtype", action="store_true", help="another dtype alone is no difference")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command(
        "push", "Write a model as a Hugging Face folder with a model card, or upload it to the Hub."
    )
    text = "a weight file, a run or checkpoint folder, or hf:FOLDER"
    sub.add_argument("source", metavar="SRC", help=text)
    sub.add_argument("repo", metavar="ORG/NAME", nargs="?", help="default: nothing is uploaded")
    sub.add_argument("--folder", metavar="DIR", help="a new folder to keep; default: a temporary one")
    sub.add_argument("--model", metavar="NAME", help="default: what the source says it holds")
    sub.add_argument("--variant", metavar="V", help="default: the one the source or its page names")
    text = "figures for the card, of jaxarch parity NAME --json FILE; default: it says unverified"
    sub.add_argument("--parity", metavar="FILE", help=text)
    sub.add_argument("--revision", metavar="BRANCH", help="default: the main branch")
    sub.add_argument("--private", action="store_true", help="if the model is new, make it private")
    sub.add_argument("--shard-size", metavar="SIZE", help="the most bytes of a file; default: 5GB")

    sub = command("train", "Train a model by its page's recipe.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--variant", metavar="V", help="default: the one its page trains")
    sub.add_argument("--recipe", metavar="R", help="a table [recipes.R] of its page; default: [train]")
    text = "for example data=2,fsdp=2,tensor=2; default: data over all devices"
    sub.add_argument("--mesh", metavar="AXES", help=text)
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="train.lr=3e-4, ...")
    sub.add_argument("--out", default=None, metavar="DIR", help="default: runs/NAME")
    sub.add_argument("--resume", action="store_true", help="continue from the newest intact checkpoint")

    sub = command("generate", "Continue a text with a trained language model.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `jaxarch train` wrote")
    sub.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default: 0, greedy")
    sub.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    text = "sample from the most likely tokens whose probabilities sum to P (nucleus sampling)"
    sub.add_argument("--top-p", type=float, metavar="P", help=text)
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")

    sub = command("sample", "Sample images from a trained generative model.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `jaxarch train` wrote")
    sub.add_argument("--n", type=int, default=64, metavar="N", help="number of images; default: 64")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    sub.add_argument("--out", default="sheet.png", metavar="FILE", help="default: sheet.png")
    sub.add_argument("--class", type=int, dest="label", metavar="C", help="default: all classes in turn")
    text = "classifier-free guidance scale (1 = off)"
    sub.add_argument("--guidance", type=float, metavar="X", help=text)
    sub.add_argument(
        "--steps", type=int, metavar="N", help="sampling steps of a diffusion model; default: 50"
    )

    sub = command("bench", "Time training steps against torch, eager and compiled.")
    sub.add_argument("names", metavar="NAME", nargs="+", help="a model, a variant, or lstm, gru, ...")
    sub.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    sub.add_argument("--repeat", type=int, default=7, metavar="N", help="rounds; the median counts")
    sub.add_argument("--json", metavar="FILE", nargs="?", const="-", help=JSON_HELP)

    sub = command("demo", "Train sharded, interrupt, resume, convert, prove, generate, report.")
    sub.add_argument("--out", default="runs/demo", metavar="DIR", help="default: runs/demo")
    sub.add_argument("--steps", type=int, metavar="N", help="training steps; default: the page's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
