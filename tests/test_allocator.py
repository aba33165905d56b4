"""Freed memory that stays."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from torch import nn
from fedsparse.allocator import keep_freed_memory

layers = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
x = torch.randn(32, 8, 96, 96)  # 9 MB, as every activation is

def new_pages(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        layers(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages(5)
given_back = new_pages(5)
if keep_freed_memory():
    new_pages(5)
    kept = new_pages(5)
    assert kept < given_back / 10, (kept, given_back)
else:
    print("unchanged")
"""


def test_a_training_loop_gets_its_pages_once():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "unchanged":
        pytest.skip("this C library's allocator has no such switch")
    assert done.returncode == 0, done.stderr
