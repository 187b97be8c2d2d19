"""Hostile files end in one typed line, fast, in little memory, with nothing executed or written; faults are seen.

The process that opens them is one of users: without x64, and with torch only because the corpus is made with it.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hostile import table
from hostile.measure import Outcome

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
# The least number of files for each reader; fewer mean that a group of them is no longer made.
LEAST = {
    "torch": 180,
    "safetensors": 110,
    "msgpack": 70,
    "npz": 65,
    "orbax": 50,
    "config.json": 50,
    "shards": 25,
    "torch before 1.6": 25,
    "torch.distributed": 20,
    "manifest": 15,
    "peft": 10,
    "folder": 2,
}


def outcomes(*arguments: str) -> list[Outcome]:
    """What a process of its own says that the cases did."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}", "OMP_NUM_THREADS": "1"}
    environment.pop("JAX_ENABLE_X64", None)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]


def test_every_file_ends_in_one_line(tmp_path):
    canary = Path("/tmp/jaxarch-canary")
    canary.unlink(missing_ok=True)
    done = outcomes("-m", "hostile.measure", str(tmp_path / "corpus"))
    counts = Counter(outcome.reader for outcome in done)
    print(counts)
    assert sum(counts.values()) >= 250
    assert not {k: counts[k] for k, n in LEAST.items() if counts[k] < n}
    problems = [problem for outcome in done for problem in outcome.problems()]
    assert not problems, "\n".join(problems)
    assert not canary.exists()


# Readers with a fault each, by what their outcomes should say.
FAULTS = {
    "lets one through": ("pass", "ended with no error"),
    "traceback": ("[][1]", "ended with IndexError"),
    "two lines": ("raise UsageError('a line\\nand another')", "its error is not a line"),
    "executes": ("os.system('true')", "did os.system"),
    "writes": ("open('/tmp/jaxarch-planted', 'w').close()", "did open"),
    "slow": ("start = time.process_time()\nwhile time.process_time() < start + 2.1: pass", "took "),
    "large": ("sum(bytearray(1 << 30)[:: 1 << 12])", "took 10"),
    "never ends": ("signal.alarm(1); os.read(os.pipe()[0], 1)", "ended with signal 14"),
}


def test_a_planted_fault_is_seen(tmp_path):
    code = (
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from hostile import Case, of_bytes\n"
        "from hostile.measure import measured\n"
        "from jaxarch.errors import UsageError\n"
        "for name, fault in json.loads(sys.argv[1]).items():\n"
        "    case = Case('planted', name, of_bytes('x', b''))\n"
        "    print(json.dumps(measured(case, Path(sys.argv[2]), lambda case, path: exec(fault))))\n"
    )
    done = outcomes(
        "-c", code, json.dumps({k: fault for k, (fault, _) in FAULTS.items()}), str(tmp_path / "x")
    )
    Path("/tmp/jaxarch-planted").unlink(missing_ok=True)
    assert [o.name for o in done] == list(FAULTS)
    for outcome in done:
        assert any(FAULTS[outcome.name][1] in problem for problem in outcome.problems()), outcome


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_documentation_has_the_counts():
    text = (ROOT / "docs" / "security.md").read_text()
    assert table() in text
