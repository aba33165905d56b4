"""Where the tensors of a kernel test are: in main memory for the interpreter, else on the GPU."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
