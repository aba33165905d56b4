"""TOML text: what is written is read back equal."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.errors import ConfigError
from fedsparse.experiment.toml_text import to_toml, value_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
TABLES = st.dictionaries(TEXTS, VALUES, max_size=4)


@given(st.dictionaries(TEXTS, st.one_of(VALUES, TABLES, st.lists(TABLES, min_size=1, max_size=3)), max_size=4))
def test_the_parse_of_the_text_is_the_document(document):
    assert tomllib.loads(to_toml(document)) == document


def test_none_is_left_out_at_the_top_and_in_tables():
    assert tomllib.loads(to_toml({"a": None, "t": {"x": None, "y": 1}, "l": [{"z": None}]})) == {
        "t": {"y": 1},
        "l": [{}],
    }


def test_the_text_reads_like_a_hand_written_file():
    document = {"run": {"name": "demo", "seed": 1}, "variants": [{"name": "a", "method": {"density": 0.1}}]}
    assert to_toml(document) == (
        '[run]\nname = "demo"\nseed = 1\n\n[[variants]]\nname = "a"\nmethod = {density = 0.1}\n'
    )


def test_a_value_without_a_toml_form_is_refused():
    with pytest.raises(ConfigError, match=r"type object, <object.*has no TOML form"):
        value_text(object())
