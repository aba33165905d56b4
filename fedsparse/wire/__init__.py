"""Messages as bytes: one buffer with header and checksum, positions in their smallest form, no pickle."""

from fedsparse.wire.codec import decode, encode
from fedsparse.wire.payload import IndexSet, Payload, Quantized, Section, SignMap, SparseVector

__all__ = ["IndexSet", "Payload", "Quantized", "Section", "SignMap", "SparseVector", "decode", "encode"]
