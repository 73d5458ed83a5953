"""Text of others on a terminal."""

import json

from hypothesis import given
from hypothesis import strategies as st

from amed_env.support.text import first_few, printable, printable_json


def test_control_characters_become_escapes_and_letters_stay():
    assert printable("a\x1b[31m\tb\n") == "a\\x1b[31m\tb\n"
    assert printable("\r\x7f\x9b\u202e\ud800") == "\\r\\x7f\\x9b\\u202e\\ud800"
    assert printable("Größe 漢字 👍") == "Größe 漢字 👍"
    assert first_few(["\x1b[2J"]) == "\\x1b[2J"


@given(st.text(st.characters()))
def test_nothing_that_controls_a_terminal_is_left(text):
    shown = printable(text)
    assert all(character in "\t\n" or ord(character) >= 32 for character in shown)
    assert printable(shown) == shown
    written = printable_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(written) == [text] and "\x7f" not in written and "\x9b" not in written
