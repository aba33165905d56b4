"""Memory that a process frees and soon wants back."""

import ctypes

__all__ = ["keep_freed_memory"]

_MIB = 1 << 20
# Parameters of glibc's mallopt, which gives none of them a name outside C.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Lets the process keep up to a gigabyte that it frees, instead of giving it back to the system.

    A training step frees its activations and asks for the same sizes again. glibc returns large blocks to the system
    and gets them back page by page, each zeroed: a tenth of a sparse ResNet-18's step. This changes the whole process,
    so programs call it, as `fedsparse run` and `fedsparse bench` do; importing the package does not.

    Returns:
        Whether the C library took the settings; only glibc has them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_TRIM_THRESHOLD, 1024 * _MIB), (_TOP_PAD, 64 * _MIB), (_MMAP_THRESHOLD, 32 * _MIB))
    return all(mallopt(parameter, value) for parameter, value in settings)
