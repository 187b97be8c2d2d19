"""What became of everything that a source held: kept, cast, dropped, carried; as lines and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxarch.convert.tensors import Tensor
from jaxarch.errors import printable

# Names of one kind that a line shows; JSON has them all.
_SHOWN = 5


@dataclass
class Report:
    """The account of one conversion. Every name is in one of these.

    Attributes:
        model: the architecture and its variant.
        tensors: what was written, by the target's names: dtype, shape and bytes.
        renamed: the target's name -> the source's, where they differ; several of a tensor that was joined.
        cast: name -> (dtype before, dtype after).
        tied: name of the source that repeats another -> that other.
        dropped: name of the source -> why it was not written.
        missing: names that the source lacked and `--allow-missing` allowed, with what stands there.
        lossy: names that a rule has summed, whose parts cannot be told apart again.
        carried: files and entries beside the weights that went along.
        left: files and entries beside the weights that did not -> why.
        notes: what else a reader should know, such as the wrapper in which the weights lay.
        verified: whether the target was read back and compared.
        written: a line on a whole run, which has no account of its tensors.
    """

    source: str
    target: str
    model: str = ""
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    renamed: dict[str, list[str]] = field(default_factory=dict)
    cast: dict[str, tuple[str, str]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    lossy: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verified: bool = False
    written: str = ""

    def wrote(self, tensors: Mapping[str, Tensor]) -> None:
        """Note the tensors of the target."""
        self.tensors = {
            k: {"dtype": t.info.dtype, "shape": list(t.shape), "bytes": t.nbytes} for k, t in tensors.items()
        }

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(t["bytes"] for t in self.tensors.values())

    def as_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return {**vars(self), "bytes": self.size}

    def summary(self) -> str:
        """One line: what was written, and the heads of a model that were left out."""
        if self.written:
            return self.written
        omitted = [k for k, why in self.dropped.items() if why == HEAD]
        text = f"; left out: {', '.join(map(printable, omitted))}" if omitted else ""
        return f"{self.target}: {len(self.tensors)} tensors, {self.size:,} bytes, {self.model}{text}"

    def lines(self) -> Iterator[str]:
        """The summary, and a line for each kind of thing that is not simply kept."""
        yield self.summary()
        if self.cast:
            pairs = sorted({f"{a} to {b}" for a, b in self.cast.values()})
            yield f"  cast {', '.join(pairs)}: {_names(list(self.cast))}"
        groups: dict[str, list[str]] = {}
        for key, why in self.dropped.items():
            if why != HEAD:
                groups.setdefault(why, []).append(key)
        for why, keys in groups.items():
            yield f"  dropped, {why}: {_names(keys)}"
        for key, original in list(self.tied.items())[:_SHOWN]:
            yield f"  tied: {printable(key)} = {printable(original)}"
        if self.missing:
            yield f"  missing, {next(iter(self.missing.values()))}: {_names(list(self.missing))}"
        if self.lossy:
            yield f"  summed, the parts cannot be restored: {_names(self.lossy)}"
        if self.carried:
            yield f"  carried: {_names(self.carried)}"
        for name, why in list(self.left.items())[:20]:
            yield f"  not carried: {name}: {why}"
        if len(self.left) > 20:
            yield f"  not carried: {len(self.left) - 20} more"
        yield from (f"  {note}" for note in self.notes)
        if self.verified:
            yield f"  verified: {len(self.tensors)} tensors read back and compared"


# The reason for keys of a head that the model lacks.
HEAD = "the model has no such head"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
