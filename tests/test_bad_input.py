"""A user's mistake gets one sentence, or two: what was given, and what is allowed. Nothing is written, nothing is left.

The mistakes are in bad_input.py, the processes that make them in sandbox.py.
"""

import os
import re
import sys

import pytest
from bad_input import ROWS, STRANGER, Row
from sandbox import Result, Sandboxes

LETTERS = 400  # of a message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandboxes are watched through /proc")


@pytest.fixture(scope="module")
def sandboxes():
    with Sandboxes() as running:
        yield running


def message_of(row: Row, result: Result, box: str) -> str:
    """What the user reads, without argparse's lines on the usage, and with paths as the user has typed them."""
    text = result.out + result.err if row.stdout or row.listed else result.err
    text = re.sub(r"^usage:(.|\n)*?(?=^\S+: error:)", "", text, flags=re.MULTILINE)
    return text.replace(f"{box}/", "").strip()


def faults(row: Row, result: Result, box: str) -> list[tuple[str, str]]:
    """What is wrong with the answer to a wrong input, as pairs of a kind and a sentence."""
    found = []
    both = result.out + result.err
    message = message_of(row, result, box)
    if result.hangs:
        found.append(("hang", f"has not ended after {result.seconds:.0f} s"))
    elif "MemoryError" in both or "Unable to allocate" in both or (result.code == -9 and not result.hangs):
        found.append(("memory", both[-200:]))
    elif "Traceback (most recent call last)" in both:
        found.append(("traceback", both.strip().splitlines()[-1][:200]))
    elif result.code < 0:
        found.append(("signal", f"ended by signal {-result.code}"))
    elif result.code == 0 and not (row.listed or row.harmless):
        found.append(("exit code 0", both.strip()[-200:]))
    if result.changed:
        found.append(("written", ", ".join(result.changed[:5])))
    if result.left:
        found.append(("process", ", ".join(result.left)))
    if found or row.harmless:
        return found
    if row.listed:
        missing = [name for name in row.listed if name not in message]
        return [("message", f"{missing} are not listed: {message[:300]}")] if missing else []
    sentences = len(re.findall(r"[.?!]\s+(?=[A-Z`])", message)) + 1
    missing = [words for words in row.message if not any(part in message for part in words.split("|"))]
    if not message:
        found.append(("message", "no message"))
    elif jargon := re.search(r"typing\.|<class '|Namespace\(|<[\w.]+ object at|set_int_max_str", message):
        found.append(("message", f"{jargon[0]} is not for the user: {message[:300]}"))
    elif len(message) > LETTERS and not row.stdout:
        found.append(("message", f"{len(message)} letters: {message[:200]}..."))
    elif (sentences > 2 or len(message.splitlines()) > 2) and not row.stdout:
        found.append(("message", f"{sentences} sentences, {len(message.splitlines())} lines: {message[:300]}"))
    elif missing:
        found.append(("message", f"without {missing}: {message[:300]}"))
    return found


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=ascii(row.name)[1:-1], marks=[pytest.mark.slow] * row.slow) for row in ROWS]
)
def test_a_wrong_input_gets_one_sentence(sandboxes, row):
    if row.uid == STRANGER and os.getuid() != 0:
        pytest.skip("only root can become a user who has no home folder")
    result = sandboxes.run(row)
    assert not faults(row, result, str(sandboxes.folder / "box"))
