"""Benchmarks do the same work in both frameworks, or say that they do not."""

import json

import pytest

import torchref
import torchref.nn
from jaxarch import bench, cli
from jaxarch.errors import JaxarchError, UsageError


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Benchmarks run in float32 whatever the tests' default is."""
    import jax

    with jax.enable_x64(False):
        yield


def test_both_take_the_same_step(tmp_path):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "mlp", "--no-compile", "--repeat", "1", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())
    assert found["name"] == "mlp"
    assert found["seconds"].keys() == {bench.OURS, "torch"}
    assert found["ratio"]["torch"] == pytest.approx(found["seconds"][bench.OURS] / found["seconds"]["torch"])


def test_other_work_is_refused():
    contest = bench.Contest("x", {bench.OURS: lambda: 1.0, "torch": lambda: 1.01})
    with pytest.raises(JaxarchError, match="losses differ"):
        bench.measure(contest)


def test_what_torch_does_not_compile_is_left_out(caplog):
    from torch._inductor.exc import InductorError

    def refuse():
        raise InductorError(AssertionError("no vector"), None)

    timing = bench.measure(bench.Contest("x", {bench.OURS: lambda: 1.0, "pyg compiled": refuse}), 1)
    assert timing.seconds.keys() == {bench.OURS}
    assert "pyg compiled is left out" in caplog.text
    with pytest.raises(InductorError):
        bench.measure(bench.Contest("x", {bench.OURS: refuse}), 1)


def test_unknown_names(capsys):
    with pytest.raises(UsageError, match="advanced_cnn"):
        list(bench.contests("advanced_cn", torchref))
    assert cli.main(["bench", "mlp", "--repeat", "0", "--no-compile"]) == 2
    assert "repeat" in capsys.readouterr().err
