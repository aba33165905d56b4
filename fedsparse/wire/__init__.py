"""Messages as bytes: one buffer with header and checksum, positions in their smallest form, no pickle."""

from fedsparse.wire.codec import MOST_BYTES, decode, encode
from fedsparse.wire.payload import IndexSet, Payload, Quantized, Section, SignMap, SparseVector

__all__ = ["MOST_BYTES", "IndexSet", "Payload", "Quantized", "Section", "SignMap", "SparseVector", "decode", "encode"]
