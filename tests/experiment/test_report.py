"""The report as a whole; what it draws needs matplotlib, the rest does not."""

import json
import re
import sys
from pathlib import Path

import pytest

from fedsparse.errors import CheckpointError, ConfigError, MissingExtraError
from fedsparse.experiment.report import write_report
from tests.experiment.folders import write_lines, write_run

EVIL = "<script>alert(1)</script>$x$"


@pytest.fixture
def drawing():
    pytest.importorskip("matplotlib", reason="reports are drawn by matplotlib: pip install 'fedsparse[report]'")


@pytest.fixture
def folders(tmp_path):
    """A dense run, a sparse one with layers and an odd name, and one that is not finished."""
    sparse = write_run(tmp_path / "sparse", name=EVIL, method="static", accuracy=0.7, bytes_up=5, masks_changed=3)
    lines = [
        {"round": n, "layer": f"layer{k}.weight", "size": 90, "nnz": 9 + n, "changed": n}
        for n in range(2)
        for k in range(3)
    ]
    write_lines(sparse / "layers.jsonl", lines)
    (sparse / "env.json").write_text(json.dumps({"torch": "2.13.0", "processor": "<b>chip</b>"}))
    return [write_run(tmp_path / "dense"), sparse, write_run(tmp_path / "short", done=0, method="static")]


@pytest.mark.usefixtures("drawing")
def test_one_file_that_loads_nothing_and_that_names_cannot_break(folders, tmp_path):
    text = write_report(folders, tmp_path / "deep" / "r.html").read_text()
    assert not re.search(r"<script|<link|@import|src=|https?://", text)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;$x$") == 4, "legend, figures, heading, machines"
    assert "&lt;b&gt;chip&lt;/b&gt;" in text
    assert text.count("<svg") == text.count("</svg>") == 4
    assert "layer2.weight</text>" in text
    assert "incomplete: 0 of 2 rounds" in text
    targets = re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids)
    assert targets


@pytest.mark.usefixtures("drawing")
def test_the_same_runs_give_the_same_bytes(folders, tmp_path):
    first, second = (write_report(folders, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert not re.search(rb"20\d\d-\d\d-\d\d", first), "a date"


def test_a_place_that_cannot_be_written_is_named(folders, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"r\.html: the report cannot be written"):
        write_report(folders, tmp_path / "file" / "r.html")


@pytest.mark.usefixtures("drawing")
def test_a_real_run_is_drawn_by_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fedsparse.cli.main import app

    monkeypatch.chdir(tmp_path)
    text = (
        '[run]\nname = "small"\nrounds = 2\n[data]\nclients = 2\ntrain_limit = 100\n[model]\nname = "mlp"\n'
        'hidden = [12, 12]\n[method]\nname = "fedtiny"\ndensity = 0.3\nadjust_every = 1\nadjust_until = 2\n'
    )
    Path("small.toml").write_text(text)
    assert CliRunner().invoke(app, ["run", "small.toml"]).exit_code == 0
    lines = [json.loads(line) for line in Path("runs/small-1/layers.jsonl").read_text().splitlines()]
    rounds = [json.loads(line) for line in Path("runs/small-1/metrics.jsonl").read_text().splitlines()]
    for record in rounds:
        mine = [line for line in lines if line["round"] == record["round"]]
        assert sum(line["nnz"] for line in mine) == record["nnz"]
        assert sum(line["changed"] for line in mine) == record["masks_changed"]
    result = CliRunner().invoke(app, ["report", "runs/small-1"])
    assert result.stdout == "written to runs/small-1/report.html\n", result.output
    assert "Layers of small" in Path("runs/small-1/report.html").read_text()


def test_without_matplotlib_the_extra_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "fedsparse.experiment.charts", raising=False)
    monkeypatch.delattr("fedsparse.experiment.charts", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparse\[report\]'"):
        write_report(folders, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_several_folders_need_a_place(folders):
    with pytest.raises(ConfigError, match=r"3 folders needs a place: expected -o FILE\.html"):
        write_report(folders)


def test_importing_fedsparse_does_not_import_matplotlib():
    import subprocess

    code = "import sys, fedsparse, fedsparse.cli.main; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
