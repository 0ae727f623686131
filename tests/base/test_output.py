"""A stream that fails is given up, and nothing else changes."""

import io
import os

from cachedlrm.base.output import SafeStream


class Failing(io.StringIO):
    """Fails at the second write, and counts the attempts."""

    attempts = 0

    def write(self, text: str) -> int:
        self.attempts += 1
        if self.attempts > 1:
            raise BrokenPipeError
        return super().write(text)


def test_nothing_is_written_after_a_failure():
    stream = Failing()
    output = SafeStream(stream)
    assert [output.write(text) for text in ("one", "two", "three")] == [3, 3, 5]
    output.flush()
    assert stream.getvalue() == "one"
    assert stream.attempts == 2


def test_a_flush_may_fail_too():
    with open(os.devnull, "w") as stream:
        stream.flush = lambda: (_ for _ in ()).throw(OSError("full"))
        output = SafeStream(stream)
        output.write("text")
        output.flush()
        del stream.flush
        assert output.write("lost") == 4


def test_characters_that_the_encoding_lacks_are_question_marks():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="latin-1")
    SafeStream(stream).write("dätä 表\n")
    stream.flush()
    assert written.getvalue() == "dätä ?\n".encode("latin-1")


def test_a_closed_descriptor_takes_everything():
    output = SafeStream(None)
    assert output.write("text") == 4
    output.flush()
    assert not output.isatty()
    assert output.encoding == "utf-8"


def test_the_rest_is_the_stream_s():
    stream = io.StringIO("one\ntwo\n")
    assert SafeStream(stream).readline() == "one\n"
