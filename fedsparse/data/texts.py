"""Text sets on disk, as the texts to train on and those to test on."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsparse.data.federated import Dataset
from fedsparse.data.tokens import BYTES, blocks, tokenizer
from fedsparse.errors import ConfigError, DataError, DataNotFoundError

__all__ = ["TEXTS", "Cutting", "load_text"]

Texts = tuple[list[str], list[str]]  # to train on, to test on
_HELD_OUT = 0.1  # of the stories or speeches of sets without a test part
_ROLE_TRAINS = 0.8  # of a role's text, the part that comes first; as LEAF does
_END = "<|endoftext|>"
_HEADING = re.compile(r"(?m)^(?= = [^=\n]+ = \n \n)")  # the empty line tells it from an equation


@dataclass(frozen=True)
class Cutting:
    """How texts become samples.

    Attributes:
        tokenizer: `bytes`, or the folder of a byte-level BPE; see `data.tokens.tokenizer`.
        context: tokens of a block.
        truncate: take the first block of each text only.
    """

    tokenizer: str = BYTES
    context: int = 256
    truncate: bool = False


def load_text(
    name: str,
    root: Path,
    cutting: Cutting,
    *,
    generator: np.random.Generator,
    train_limit: int | None,
    test_limit: int | None,
) -> tuple[Dataset, Dataset]:
    """Training and test blocks; limits count texts, drawn at random.

    Raises:
        ConfigError: a limit below 1.
        DataNotFoundError: files are missing.
        DataError: files are damaged, or leave nothing to train or test on.
    """
    encode, vocabulary = tokenizer(cutting.tokenizer)
    limits = zip(TEXTS[name](root, generator), (train_limit, test_limit), strict=True)
    train, test = (
        blocks(_some(texts, limit, generator), encode, vocabulary, context=cutting.context, truncate=cutting.truncate)
        for texts, limit in limits
    )
    if not len(train) or not len(test):
        raise DataError(f"{name} in {root} gives {len(train)} training and {len(test)} test blocks; each needs one")
    return train, test


def _some(texts: Sequence[str], limit: int | None, generator: np.random.Generator) -> Sequence[str]:
    if limit is None or limit >= len(texts):
        return texts
    if limit < 1:
        raise ConfigError(f"a limit of texts must be at least 1, got {limit}; leave it out to take all")
    return [texts[i] for i in np.sort(generator.permutation(len(texts))[:limit])]


# ---- the sets
def _tinystories(root: Path, generator: np.random.Generator) -> Texts:
    """Stories.  Eldan and Li, arXiv:2305.07759.

    The published files TinyStories-train.txt and TinyStories-valid.txt, whose stories end with a marker, or the
    excerpt tiny_stories_excerpt.txt, where a story begins after a line end that no empty line follows; of the
    excerpt a random tenth of the stories is the test set.
    """
    place = _place(root, ("tinystories", "text/tinystories"), "TinyStories-train.txt", "tiny_stories_excerpt.txt")
    if (place / "TinyStories-train.txt").is_file():
        train, test = (_read(place / f"TinyStories-{part}.txt").split(_END) for part in ("train", "valid"))
        return _filled(train), _filled(test)
    stories = _filled(re.split(r"(?<!\n)\n(?!\n)", _read(place / "tiny_stories_excerpt.txt")))
    held = set(generator.permutation(len(stories))[: round(_HELD_OUT * len(stories))].tolist())
    train = [story for number, story in enumerate(stories) if number not in held]
    return train, [story for number, story in enumerate(stories) if number in held]


def _tinyshakespeare(root: Path, _: np.random.Generator) -> Texts:
    """Speeches of input.txt, its speaker's name included; the last tenth of the speeches is the test set."""
    place = _place(root, ("tinyshakespeare", "text/tinyshakespeare"), "input.txt")
    speeches = _filled(_read(place / "input.txt").split("\n\n"))
    edge = len(speeches) - round(_HELD_OUT * len(speeches))
    return speeches[:edge], speeches[edge:]


def _wikitext2(root: Path, _: np.random.Generator) -> Texts:
    """Articles.  Merity et al., ICLR 2017.

    Trains on train.txt, or where it is missing on valid.txt, which is not the benchmark; tests on test.txt. An
    article begins with a heading between single equals signs.
    """
    place = _place(root, ("wikitext-2", "text/wikitext-2"), "test.txt")
    first = "train.txt" if (place / "train.txt").is_file() else "valid.txt"
    train, test = (_filled(_HEADING.split(_read(place / file))) for file in (first, "test.txt"))
    return train, test


def _federated_shakespeare(root: Path, _: np.random.Generator) -> Texts:
    """All that each speaking role of Shakespeare's plays says, in the order of the play; a role is a natural client.

    In the manner of LEAF (Caldas et al., arXiv:1812.01097) the first 80 % of the characters of each role are for
    training and the rest for testing. The file is roles.jsonl: an object a line, with a list `speeches`.
    """
    place = _place(root, ("federated_shakespeare",), "roles.jsonl")
    train, test = [], []
    for number, line in enumerate(_read(place / "roles.jsonl").rstrip("\n").split("\n"), start=1):
        text = "\n".join(_speeches(line, place / "roles.jsonl", number))
        edge = round(_ROLE_TRAINS * len(text))
        train.append(text[:edge])
        test.append(text[edge:])
    return train, test


def _speeches(line: str, file: Path, number: int) -> list[str]:
    try:
        speeches = json.loads(line)["speeches"]
        if not isinstance(speeches, list) or not all(isinstance(speech, str) for speech in speeches):
            raise TypeError("speeches is no list of texts")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}, line {number}: expected an object with a list 'speeches': {error}") from error
    return speeches


TEXTS: dict[str, Callable[[Path, np.random.Generator], Texts]] = {
    "federated_shakespeare": _federated_shakespeare,
    "tinyshakespeare": _tinyshakespeare,
    "tinystories": _tinystories,
    "wikitext2": _wikitext2,
}


# ---- files
def _place(root: Path, folders: Sequence[str], *files: str) -> Path:
    """The first of `root/folder` and `root` that holds one of the files."""
    places = [*(root / folder for folder in folders), root]
    for place in places:
        if any((place / file).is_file() for file in files):
            return place
    raise DataNotFoundError(
        f"{' or '.join(files)} was not found in {', '.join(map(str, places))}; set data.root to a folder above it"
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no {file}; it belongs to the files beside it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}") from error


def _filled(texts: Sequence[str]) -> list[str]:
    """Texts without the blanks around them, empty ones left out."""
    return [text.strip() for text in texts if text.strip()]
