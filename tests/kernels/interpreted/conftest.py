"""These tests run kernels in Triton's interpreter, in the process that ../test_interpreted.py starts for them.

Where there is a GPU, those on tensors of their own run there as well, as they stand.
"""

from pathlib import Path

import pytest
import torch

from tests.kernels.device import INTERPRETED

if not INTERPRETED:
    collect_ignore_glob = ["test_products.py"] if torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
