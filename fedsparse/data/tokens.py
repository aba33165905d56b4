"""Texts as tokens, and tokens as blocks of one length."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsparse.data.federated import Dataset
from fedsparse.data.task import IGNORED
from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["BYTES", "Encode", "blocks", "tokenizer"]

BYTES = "bytes"
_FILES = ("vocab.json", "merges.txt")

Tokens = NDArray[np.int32]
Encode = Callable[[str], Tokens]


def tokenizer(name: str) -> tuple[Encode, int]:
    """How text becomes tokens, and the size of the vocabulary.

    Args:
        name: `bytes`, the 256 bytes of UTF-8 text, or the folder of a byte-level BPE with the files that GPT-2 was
            published with, vocab.json and merges.txt.

    Raises:
        DataNotFoundError: the folder lacks these files.
        DataError: they are damaged, or the tokenizers package is missing.
    """
    if name == BYTES:
        return _bytes, 256
    folder = Path(name)
    vocabulary, merges = (folder / file for file in _FILES)
    if not (vocabulary.is_file() and merges.is_file()):
        raise DataNotFoundError(
            f"data.tokenizer = {name!r} should be {BYTES!r} or a folder with {' and '.join(_FILES)}; "
            "download these two files of GPT-2 into one folder and name it"
        )
    return _bpe(vocabulary, merges)


def _bytes(text: str) -> Tokens:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def _bpe(vocabulary: Path, merges: Path) -> tuple[Encode, int]:
    try:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
    except ImportError as error:
        raise DataError("GPT-2's tokens come with the tokenizers package: pip install 'fedsparse[text]'") from error
    try:
        coder = Tokenizer(BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the package raises bare exceptions
        raise DataError(f"{vocabulary} and {merges} are not a vocabulary and its merges: {error}") from error
    coder.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return lambda text: np.array(coder.encode(text).ids, dtype=np.int32), int(coder.get_vocab_size())


def blocks(texts: Iterable[str], encode: Encode, vocabulary: int, *, context: int, truncate: bool) -> Dataset:
    """Samples of `context` tokens, each with the tokens that follow; the story is the number of the text.

    A text of t tokens gives ceil((t - 1) / context) blocks, so that each token but its first is predicted exactly
    once. The last block is filled up with IGNORED, where nothing is predicted. Texts below two tokens give none.

    Deviations from code for TinyStories (FedRTS, arXiv:2501.19122), which pads with the end-of-text token and ignores
    it: nothing is appended to a text, and without `truncate` what follows the first block is not thrown away.

    Args:
        texts: stories, or all that one role says.
        encode, vocabulary: of `tokenizer`.
        context: tokens of a block.
        truncate: take the first block of each text only.
    """
    rows: list[Tokens] = []
    story: list[int] = []
    for number, text in enumerate(texts):
        cut = _cut(encode(text), context)[: 1 if truncate else None]
        rows += cut
        story += [number] * len(cut)
    table = torch.from_numpy(np.stack(rows) if rows else np.empty((0, context + 1), dtype=np.int32))
    # Views of one table, which take half the memory of two.
    return Dataset(table[:, :-1], table[:, 1:], vocabulary, story=torch.tensor(story, dtype=torch.int64))


def _cut(tokens: Tokens, context: int) -> Sequence[Tokens]:
    """Pieces of `context + 1` tokens, each beginning with the last of the piece before, IGNORED after the end."""
    pieces = []
    for start in range(0, len(tokens) - 1, context):
        piece = np.full(context + 1, IGNORED, dtype=np.int32)
        given = tokens[start : start + context + 1]
        piece[: len(given)] = given
        pieces.append(piece)
    return pieces
