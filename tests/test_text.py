"""Streamed text: the parts add up to the whole, and no part should have been held back."""

from hypothesis import given
from hypothesis import strategies as st

from servelab.text import TextStream, is_half_character, visible_piece

texts = st.text(st.characters(codec="utf-8"), max_size=30)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def pieces_of(text: str, lengths: list[int]) -> list[bytes]:
    """The text's bytes cut at places that do not care for characters."""
    data, pieces = text.encode(), []
    while data:
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(data[:length])
        data = data[length:]
    return pieces


def streamed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(pieces.__getitem__, stop)
    return [*map(stream.push, range(len(pieces))), stream.finish()]


@given(texts, cuts)
def test_only_whole_characters_and_nothing_is_lost(text: str, lengths: list[int]) -> None:
    parts = streamed(pieces_of(text, lengths))
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@given(texts, cuts)
def test_a_character_is_shown_as_soon_as_its_last_byte_is_there(text: str, lengths: list[int]) -> None:
    pieces = pieces_of(text, lengths)
    shown = ""
    for count, part in enumerate(streamed(pieces)[:-1], start=1):
        shown += part
        assert shown == b"".join(pieces[:count]).decode(errors="ignore")


@given(
    st.text("ab日", max_size=20),
    cuts,
    st.lists(st.text("ab日", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string_and_its_beginning_never_shows(text, lengths, stops) -> None:
    parts = streamed(pieces_of(text, lengths), tuple(stops))
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        assert "".join(parts) == text
    else:
        shown = "".join(parts)
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=5))
def test_with_one_stop_string_the_text_is_exactly_what_comes_before_it(text: str, stop: str) -> None:
    assert "".join(streamed(pieces_of(text, [1]), (stop,))) == text.partition(stop)[0]


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=5))
def test_no_more_is_held_back_than_could_become_the_stop_string(text: str, stop: str) -> None:
    shown = ""
    for count, part in enumerate(streamed(pieces_of(text, [1]), (stop,))[:-1], start=1):
        shown += part
        if stop not in text[:count]:
            held = text[:count].removeprefix(shown)
            assert stop.startswith(held)


def test_a_character_that_never_becomes_whole_is_left_out() -> None:
    assert "".join(streamed(["日".encode()[:2]])) == ""
    assert "".join(streamed([b"a", b"\xff", b"b"])) == "a\ufffdb"


def test_half_characters_are_told_apart() -> None:
    first, second = "日".encode()[:1], "日".encode()[1:]
    assert is_half_character(visible_piece(first))
    assert is_half_character(visible_piece(second))
    assert not is_half_character(visible_piece("日".encode()))
