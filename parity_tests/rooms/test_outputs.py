"""No command removes or replaces what it did not write itself."""

import json

import numpy as np
import pytest

from jaxarch.cli import main
from jaxarch.commands import demo
from jaxarch.commands.features import draw_features
from jaxarch.commands.sample import write_sheet
from jaxarch.errors import UsageError
from jaxarch.files import HTML_MARK, PNG_MARK, check_replaceable
from jaxarch.train import loop

PRECIOUS = "a year of work\n"


def precious(folder, name):
    """A file that nothing may touch, and its folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PRECIOUS)
    return path


def refused(capsys, *args):
    """The one line of a call that must fail with exit status 2."""
    assert main([str(a) for a in args]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--out"],
        ["parity", "mlp", "--json"],
        ["parity", "mlp", "--html"],
        ["bench", "mlp", "--json"],
        ["sample", "no_run", "--out"],
        ["show", "advanced_cnn", "--features", "no.png", "--out"],
    ],
    ids=lambda args: "-".join(args[:3]),
)
@pytest.mark.parametrize("name", ["precious.png", "folder/precious.png"])
def test_a_file_of_others_stays(tmp_path, capsys, args, name):
    path = precious(tmp_path, name)
    assert str(tmp_path) in refused(capsys, *args, path)
    assert path.read_text() == PRECIOUS
    folder = precious(tmp_path / "taken", "precious").parent
    refused(capsys, *args, folder)
    assert [p.name for p in folder.iterdir()] == ["precious"]


def test_a_folder_of_others_is_no_demo(tmp_path):
    for name in ("report.html", "run/checkpoints/5/about.json", "notes.txt"):
        path = precious(tmp_path / name.replace("/", "-"), name)
        with pytest.raises(UsageError, match="was not written by the demo"):
            demo.clear(path.parents[name.count("/")])
        assert path.read_text() == PRECIOUS


def test_a_demo_replaces_itself_and_nothing_else(tmp_path):
    out = tmp_path / "demo"
    demo.clear(out)
    for name in ("report.html", "run/checkpoints/5/arrays/d/0", "run/metrics.jsonl", "model.safetensors"):
        precious(out, name)
    demo.clear(out)
    assert [p.name for p in out.iterdir()] == [demo.MARK]
    notes = precious(out, "run/notes.txt")
    report = precious(out, "report.html")
    with pytest.raises(UsageError, match=r"notes\.txt was not written by the demo"):
        demo.clear(out)
    assert notes.read_text() == report.read_text() == PRECIOUS


def test_a_demo_follows_no_link(tmp_path):
    path = precious(tmp_path / "mine", "precious")
    (tmp_path / "demo").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError):
        demo.clear(tmp_path / "demo")
    assert path.read_text() == PRECIOUS


@pytest.mark.parametrize("name", ["best/about.json", "metrics.jsonl"])
def test_a_new_run_replaces_nothing(tmp_path, name):
    path = precious(tmp_path, name)
    with pytest.raises(UsageError, match="choose another --out"):
        loop.fit("mlp", out=tmp_path, progress=False)
    assert path.read_text() == PRECIOUS


def test_a_run_without_a_checkpoint_is_begun_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 9.0}) + '\n{"step": 2, "lo')
    result = loop.fit("mlp", settings={"train.steps": "2"}, out=tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2]
    assert result.history[0]["loss"] != 9.0


def test_our_own_reports_are_replaced(tmp_path):
    image = tmp_path / "sheet.png"
    for _ in range(2):
        write_sheet(image, np.zeros((3, 4, 4, 3)))
        check_replaceable(image, PNG_MARK)
    with pytest.raises(UsageError, match="exists and was not written"):
        check_replaceable(image, HTML_MARK)
    (tmp_path / "empty").touch()
    check_replaceable(tmp_path / "empty", HTML_MARK)
    with pytest.raises(UsageError, match="exists and was not written"):
        draw_features("advanced_cnn", "no.png", precious(tmp_path, "mine.png"))
