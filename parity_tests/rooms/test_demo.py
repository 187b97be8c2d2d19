"""The end-to-end demo, cut short: every check passes, and too little training changes the exit status."""

import os
import re
import subprocess
import sys


def test_demo_proves_and_is_honest(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_ENABLE_X64", "XLA_FLAGS")}
    command = [sys.executable, "-m", "jaxarch.cli", "demo", "--steps", "12", "--out", str(tmp_path / "demo")]
    done = subprocess.run(
        command,
        env={**environment, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == str(tmp_path / "demo" / "report.html"), done.stderr[-2000:]
    verdicts = [line for line in lines if re.search(r"│ (ok|failed) +│$", line)]
    failed = [line for line in verdicts if "failed" in line]
    assert len(verdicts) == 10
    assert all("perplexity against" in line for line in failed), failed
    assert len(failed) == 2
    assert done.returncode == 1
    page = (tmp_path / "demo" / "report.html").read_text()
    for part in ("<svg", "word_embedding.weight", "first moment", "fsdp", "torchref"):
        assert part in page
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert not [link for link in links if link.startswith(("http:", "https:", "//"))]
    assert "involuntary" not in done.stderr.lower()
