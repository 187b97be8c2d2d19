"""Runs cases of the corpus, each in a process forked for it, and prints a line of JSON for what it did.

`python -m hostile.measure FOLDER [READER ...]` with `parity_tests` on the path. This process imports everything first;
a child measures its time and memory from there, and an audit hook says what it tried to execute or to write.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hostile import Case, cases, table
from jaxarch.convert.files import read_tensors
from jaxarch.convert.hub import read_hub
from jaxarch.errors import JaxarchError

# Seconds of the clock, for what waits; a busy machine is slow.
KILLED_AFTER, ADDRESS_BYTES = 30, 3 << 30
# What Python reports when something is executed.
EXECUTES = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
    "webbrowser.open",
)
# ... or changed on the disk.
CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)


class Outcome(NamedTuple):
    """What a child did: the class and the text of its error, seconds of CPU, bytes of memory, and misdeeds."""

    reader: str
    name: str
    error: str
    text: str
    seconds: float
    bytes: int
    deeds: list[str]

    def problems(self) -> list[str]:
        """Why the outcome is not that of a reader to trust."""
        found = list(self.deeds)
        if self.error != "JaxarchError":
            found.append(f"ended with {self.error}: {self.text[-400:]}")
        elif not self.text.isprintable() or not 10 < len(self.text) < 2000:
            found.append(f"its error is not a line: {self.text[:200]!r}")
        if self.seconds > 2:
            found.append(f"took {self.seconds:.1f} s")
        if self.bytes > 1 << 30:
            found.append(f"took {self.bytes >> 20} MiB")
        return [f"{self.reader}: {self.name}: {problem}" for problem in found]


def opened(case: Case, path: Path) -> None:
    """What a user does with a file: read all of it."""
    if case.reader == "config.json":
        read_hub(path)
    else:
        read_tensors(path)


def measured(case: Case, folder: Path, opens: Callable[[Case, Path], None] = opened) -> Outcome:
    """Make a case in a folder, and open it in a child."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that make damaged files
        path = case.make(folder)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        result = json.dumps(_child(case, path, opens)).encode()
        while result:
            result = result[os.write(writing, result) :]
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        result = stream.read()
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(folder, ignore_errors=True)
    if not result:
        return Outcome(case.reader, case.name, f"signal {os.WTERMSIG(status)}", "", KILLED_AFTER, 0, [])
    return Outcome(case.reader, case.name, *json.loads(result))


def _child(case: Case, path: Path, opens: Callable[[Case, Path], None]) -> list[Any]:
    deeds: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if event in EXECUTES or event in CHANGES or writes:
            deeds.append(f"did {event} {str(arguments)[:200]}")

    signal.alarm(KILLED_AFTER)
    resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + ADDRESS_BYTES, resource.RLIM_INFINITY))
    before, start = _peak(), time.process_time()
    sys.addaudithook(audit)
    try:
        opens(case, path)
        error, text = "no error", ""
    except JaxarchError as e:
        error, text = "JaxarchError", str(e)
    except BaseException as e:
        error, text = type(e).__name__, traceback.format_exc()
    seconds = time.process_time() - start
    return [error, text, seconds, _peak() - before, deeds]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(folder: str, *readers: str) -> None:
    """Measure the corpus, or that of some readers; with `--table` instead of a folder, print the counts."""
    if folder == "--table":
        print(table())
        return
    warnings.simplefilter("error")
    for case in cases():
        if not readers or case.reader in readers:
            print(json.dumps(measured(case, Path(folder) / "case")), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
