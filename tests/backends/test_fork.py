"""A process that forks after its kernels ran on several threads."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, torch
from torch import nn
import fedsparse as fs

torch.set_num_threads(2)
model = nn.Sequential(nn.Conv2d(40, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 40, 3, padding=1))
fs.sparsify(model, 0.1, exclude="none")
x = torch.randn(32, 40, 16, 16)

def gradients():
    model.zero_grad()
    y = model(x)
    y.sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]

before = gradients()
child = os.fork()
if child == 0:
    same = all(map(torch.equal, before, gradients()))
    os._exit(0 if same and torch.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert all(map(torch.equal, before, gradients())), "the parent changed"
assert torch.get_num_threads() == 2
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_the_same_bits():
    # The limit is no matter of speed: without care the child waits for ever for threads that it does not have.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
