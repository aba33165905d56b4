"""What the README shows works as written."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fedsparse as fs
from fedsparse.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(block: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block, "README.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_engine_example(capsys):
    names = run(BLOCKS[0])
    # The thousand grown weights stand on top of a tenth.
    assert fs.density(names["model"]) == pytest.approx(0.1 + 1000 / 11_173_962, abs=1e-6)
    assert (
        names["model"].layer4[1].conv2.values.shape
        == names["optimizer"].state[names["model"].layer4[1].conv2.values]["momentum_buffer"].shape
    )
    assert "layer4.1.conv2.weight" in capsys.readouterr().out


def test_the_federated_example(capsys):
    names = run(BLOCKS[1])
    assert len(names["result"].metrics) == 8
    assert names["result"].final["accuracy"] > 0.3
    assert capsys.readouterr().out.count(" ") == 2


def test_the_method_example(capsys):
    torch.set_num_threads(1)
    names = run("\n".join(BLOCKS[2:6]))  # pieces of one file
    *moved, last = (record["masks_changed"] for record in names["result"].metrics)
    assert moved[0] == last == 0  # the first adjustment comes after a round, none after round 3
    assert all(count > 0 for count in moved[1:])
    assert len({record["nnz"] for record in names["result"].metrics}) == 1
    assert capsys.readouterr().out.strip() == str([*moved, last])


def test_the_method_example_refuses_what_it_cannot_do():
    run("\n".join(BLOCKS[2:5]))
    with pytest.raises(fs.ConfigError, match="fedset: warm_epochs = 0; expected at least 1"):
        fs.load_config('[method]\nname = "fedset"\nwarm_epochs = 0')


SMALL = """
[run]
name = "demo"
rounds = 1
[data]
clients = 2
train_limit = 60
test_limit = 30
[model]
hidden = [12]
[[variants]]
name = "dense"
[[variants]]
name = "static"
method = {name = "static", density = 0.2}
"""


def section(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def commands(heading: str) -> list[list[str]]:
    """Arguments of the commands that a section shows."""
    blocks = re.findall(r"```\n(.*?)```", section(heading), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert lines
    assert all(words[0] == "fedsparse" for words in lines)
    return [words[1:] for words in lines]


@pytest.fixture
def small_demo():
    """A configuration of a second or two in the place of the demo."""
    torch.set_num_threads(1)
    Path("recipes").mkdir()
    Path("recipes/demo.toml").write_text(SMALL)


@pytest.mark.usefixtures("small_demo")
def test_the_commands_for_grids_and_seeds():
    outputs = []
    for arguments in commands("Grids and seeds"):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        outputs.append(result.stdout)
    assert Path("runs/demo-1/static_density-0.2_seed-0/summary.json").exists()
    folders = {path.name for path in Path("runs/demo-1").iterdir() if path.is_dir()}
    assert {name for name in folders if name.startswith("dense")} == {f"dense_seed-{seed}" for seed in range(3)}
    assert len(folders) == 3 + 2 * 3
    assert "mean and standard error over seeds" in outputs[2]
    call = re.search(r"`(fs\.load_config\(file, .*?)` is the same", section("Grids and seeds"))
    config = eval(call[1], {"fs": fs, "file": "recipes/demo.toml"})
    assert {variant.run.name for variant in config.variants} == folders


@pytest.mark.usefixtures("small_demo")
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="reports are drawn by matplotlib: fedsparse[report]")
def test_the_commands_for_reports():
    assert CliRunner().invoke(app, ["run", "recipes/demo.toml"]).exit_code == 0
    for arguments in commands("Reports"):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    assert "</html>" in Path("runs/demo-1/report.html").read_text()
    assert "</html>" in Path("demo.html").read_text()


def test_the_setting_for_trackers_and_the_measurement_of_energy(capsys):
    (block,) = re.findall(r"```toml\n(.*?)```", section("Trackers and energy"), flags=re.DOTALL)
    assert fs.load_config(block).run.trackers == tuple(tomllib.loads(block)["run"]["trackers"])
    (block,) = re.findall(r"```python\n(.*?)```", section("Trackers and energy"), flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {"fs": fs, "torch": torch})
    assert re.search(r" (measured|unavailable) ?", capsys.readouterr().out)


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
