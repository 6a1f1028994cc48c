"""reply@1 in groups of comments, against a count by hand."""

from __future__ import annotations

import numpy as np

from retrieval.evaluation.answer_scores import Prediction
from retrieval.evaluation.threads.slices import reply_slices


def test_groups_by_hand() -> None:
    rng = np.random.default_rng(3)
    rankings, records, answers = [], [], {}
    for n in range(60):
        distance = int(rng.choice([1, 2, 4, 5, 6, 80]))
        gold = ["p0"] if n % 3 == 0 else ["p1", "p2"][: 1 + n % 2]
        rankings.append({"id": str(n), "context_id": f"c{n % 7}", "gold_ids": gold, "gold_authors": ["A"],
                         "opening_id": "p0", "distance": distance, "thread_messages": 10 + n % 2,
                         "addressed": False})  # fmt: skip
        records.append({"id": str(n), "oracle_in_context": bool(n % 4)})
        answers[str(n)] = Prediction(f"p{n % 3}", "A")
    found = reply_slices({"s": answers}, rankings, records, seed=0, resamples=100)
    # No comment begins with a name, so that kind has one group only.
    assert list(found) == ["distance", "right_post", "thread_messages", "parents", "in_prompt"]
    assert [group["group"] for group in found["distance"]] == ["1", "2", "3–5", "6–10", "over 50"]
    right = {row["id"]: answers[row["id"]].post_id in row["gold_ids"] for row in rankings}
    for kind, name, chosen in (
        ("distance", "3–5", [r for r in rankings if r["distance"] in (4, 5)]),
        ("right_post", "opening post", [r for r in rankings if r["gold_ids"] == ["p0"]]),
        ("thread_messages", "11–50", [r for r in rankings if r["thread_messages"] == 11]),
        ("parents", "several", [r for r in rankings if len(r["gold_ids"]) == 2]),
        ("in_prompt", "not in the prompt", [r for r in rankings if int(r["id"]) % 4 == 0]),
    ):
        (group,) = [each for each in found[kind] if each["group"] == name]
        score = group["systems"]["s"]
        assert group["n"] == score["n"] == len(chosen) > 0
        assert score["value"] == round(sum(right[r["id"]] for r in chosen) / len(chosen), 6)
        assert score["low"] <= score["value"] <= score["high"]
    for groups in found.values():
        assert sum(group["n"] for group in groups) == len(rankings)
