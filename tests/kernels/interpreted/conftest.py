"""These tests run kernels in Triton's interpreter, in the process that ../test_interpreted.py starts for them."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
