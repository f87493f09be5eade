"""What strangers' text may do to a terminal, log or page: nothing."""

import json

import pytest

from xcite.control_characters import visible, visible_lines


def test_ordinary_text_stays_as_it_is():
    for text in ("a picture.jpg", "Käfer 甲虫 🐞", r"C:\pictures\1.png", "क्ष‍ 👩‍🔬"):
        assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x7f\x9b31m", r"\u007f\u009b31m"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
        ("\u2028\u2066\ufeff", r"\u2028\u2066\ufeff"),
    ],
)
def test_what_would_act_is_escaped(text, shown):
    assert visible(text) == shown
    assert shown.encode().decode("unicode_escape") == text  # nothing is lost


def test_lines_of_ones_own_stay():
    assert visible_lines("a\nb\x1b") == "a\nb\\x1b"


def test_json_stays_json():
    value = {"na\u009bme": "\x1b\u202e\x7f\udce9 ü"}
    text = visible_lines(json.dumps(value, indent=1, ensure_ascii=False))
    assert json.loads(text) == value
    assert text.isprintable() or "\n" in text
