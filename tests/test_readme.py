"""What the README shows works as written."""

import re
from pathlib import Path

import pytest
import torch

import fedsparse as fs

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


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
