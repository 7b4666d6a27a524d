"""The promise of the demo, in its smallest size: killed, resumed, equal bit for bit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_digits.py"
STEPS = 80


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the example, and the directory it worked in."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, EXAMPLE, "--steps", str(STEPS), "--seed", "0"]
    done = subprocess.run(
        [*command, "--directory", directory], capture_output=True, text=True
    )
    return done, directory


def test_a_killed_run_ends_like_an_undisturbed_one(demo):
    """Losses, parameters, optimizer and random streams are equal; Orbax reads them."""
    done, _ = demo

    assert done.returncode == 0, done.stderr
    assert "DIFFERENT" not in done.stderr
    assert re.search(r"^equal bit for bit +yes$", done.stdout, re.MULTILINE)
    assert re.search(r"^leaves in Orbax +\d\d+, equal: yes$", done.stdout, re.MULTILINE)


def test_the_run_was_killed_and_resumed_from_a_checkpoint(demo):
    """The equality is not that of two undisturbed runs."""
    _, directory = demo
    killed = _reports(directory / "killed.jsonl")
    resumed = _reports(directory / "resumed.jsonl")
    steps = [report["step"] for report in resumed if "step" in report]

    assert killed[0] == {"start": 0}
    assert 20 < killed[-1]["step"] < STEPS
    assert 10 <= resumed[0]["start"] <= killed[-1]["step"]
    assert steps == list(range(resumed[0]["start"] + 1, STEPS + 1))


def test_the_picture_is_drawn(demo):
    """Both curves are saved as a PNG file, whose path the table ends with."""
    done, directory = demo
    picture = directory / "losses.png"

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in done.stdout


def _reports(log):
    return [json.loads(line) for line in log.read_text().splitlines()]
