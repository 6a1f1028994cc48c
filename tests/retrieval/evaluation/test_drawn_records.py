"""The draw of held-out records keeps whole runs of records that share the beginning of their prompts."""

from __future__ import annotations

from collections import Counter

import pytest

from retrieval.evaluation.drawn_records import draw_counts, draw_records, few_contexts_of_tasks

#: Windows of a thread, and the number of records in each.
SIZES = {("a", 0): 5, ("a", 1): 5, ("b", 0): 3, ("b", 1): 7, ("c", 0): 4, ("c", 1): 6, ("c", 2): 5}


def record(thread: str, window: int, number: int) -> dict[str, str]:
    """A record whose window begins with a post, which is in another thread the same."""
    posts = "\n\n".join(f"post {at}\n#{at} Ann" for at in range(window, window + number + 1))
    return {
        "id": f"{thread}:{window}:{number}",
        "context_id": thread,
        "input": f"{posts}\n\nComment by Bob: {number}",
    }


#: Records of one window are not neighbours in the file.
ROWS = sorted(
    (record(*name, number) for name, size in SIZES.items() for number in range(size)),
    key=lambda row: row["id"][::-1],
)


def windows(rows: list[dict[str, str]]) -> Counter[tuple[str, int]]:
    found = [row["id"].split(":") for row in rows]
    return Counter((thread, int(window)) for thread, window, _ in found)


@pytest.mark.parametrize("most", range(7, 35))
def test_whole_windows_are_drawn(most: int) -> None:
    for seed in range(20):
        drawn = list(draw_records(ROWS, most, seed))
        assert len(drawn) <= most and drawn == [row for row in ROWS if row in drawn], "in the file's order"
        held = windows(drawn)
        assert all(held[name] == SIZES[name] for name in held)
        left = most - len(drawn)
        assert all(size > left for name, size in SIZES.items() if name not in held), "nothing more fits"


def test_the_draw_depends_on_the_seed_alone() -> None:
    draws = {seed: [row["id"] for row in draw_records(ROWS, 12, seed)] for seed in range(5)}
    assert all(
        draws[seed] == [row["id"] for row in draw_records(ROWS[::-1], 12, seed)][::-1] for seed in draws
    )
    assert len({tuple(ids) for ids in draws.values()}) > 1
    # Another thread in the corpus takes the place of some windows, and changes no other one.
    more = [*ROWS, *(record("d", 0, number) for number in range(4))]
    before, after = windows(list(draw_records(ROWS, 16, 0))), windows(list(draw_records(more, 16, 0)))
    assert len(set(before) & set(after)) >= len(before) - 2


def test_a_run_longer_than_the_limit_is_cut() -> None:
    assert draw_records(ROWS, None, 0) == ROWS and draw_records(ROWS, len(ROWS), 0) == ROWS
    for seed in range(10):
        assert len(draw_records(ROWS, 2, seed)) == 2
        assert len(windows(list(draw_records(ROWS, 2, seed)))) == 1


def test_counts_say_what_was_drawn_from_what() -> None:
    drawn = draw_records(ROWS, 11, 1)
    assert draw_counts(ROWS, drawn) == {
        "records": len(drawn),
        "of_records": 35,
        "contexts": len({row["context_id"] for row in drawn}),
        "of_contexts": 3,
    }


def test_tasks_of_few_contexts_are_named() -> None:
    drawn = {
        name: {"records": 40, "of_records": 40, "contexts": contexts, "of_contexts": contexts}
        for name, contexts in {"threads": 10, "tables": 9, "qa": 1}.items()
    }
    tables, qa = few_contexts_of_tasks(drawn)
    assert tables.startswith(
        "Held-out records of tables: only 9 contexts, so the interval is not to be trusted"
    )
    assert qa.startswith("Held-out records of qa: only 1 context, so")
