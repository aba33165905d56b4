"""Triton kernels of fedsparse, importable only as `fedsparse.kernels`.

This folder is grafted into the package when fedsparse is installed. Each module but this one needs Triton.
"""

if __name__ != "fedsparse.kernels":
    raise ImportError(
        f"the Triton kernels of fedsparse were imported as {__name__!r}; import them as 'fedsparse.kernels' "
        "from an installed fedsparse (`pip install -e .`): under a second name every kernel would be "
        "compiled twice"
    )
