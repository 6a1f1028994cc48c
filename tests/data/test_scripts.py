"""The seeded scripts of `data/`: the sample comes out the same again, the base model's lessons are sound."""

from __future__ import annotations

import filecmp
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA))


def test_the_sample_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, str(DATA / "make_sample.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    command = [sys.executable, str(DATA / "make_notices.py"), "--output", str(tmp_path / "notices")]
    subprocess.run(command, check=True, capture_output=True)
    made, kept = _files(tmp_path), _files(DATA / "sample")
    assert made == kept
    _, different, errors = filecmp.cmpfiles(tmp_path, DATA / "sample", made, shallow=False)
    assert not different and not errors


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(
    "number", [0, 1, 2, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4))]
)
def test_what_a_lesson_asks_is_in_its_context(number: int) -> None:
    import make_base_corpus as corpus

    lesson = corpus.LESSONS[number]
    for context, suffixes in islice(corpus.rows_of(lesson, seed=5), 0, lesson.count, lesson.count // 40):
        shown = "".join(text for text, _ in context) if suffixes else context[0][0]
        asked = suffixes or [context[1:]]
        answers = [text for segments in asked for text, weight in segments if weight == 1.0]
        assert answers
        for label in (answer for answer in answers if re.fullmatch(r"#\d+ \w+", answer)):
            assert f"\n{label}" in shown
        assert "Comment by" not in shown + "".join(text for segments in asked for text, _ in segments)


@pytest.mark.usefixtures("scripts")
def test_the_model_grows_where_it_was_zero() -> None:
    import make_base

    config = json.loads((DATA / "tiny-llama" / "config.json").read_text())
    rng = np.random.default_rng(0)
    first = make_base.first_weights(config, rng)
    grown = make_base.grown(first, rng)
    zero = {name for name, value in first.items() if not value.any()}
    layers, early = config["num_hidden_layers"], make_base.FIRST_LAYERS
    assert len(zero) == 2 * layers + 2 * (layers - early)
    assert all(value.any() for value in grown.values())
    assert all(np.array_equal(grown[name], first[name]) for name in first.keys() - zero)
