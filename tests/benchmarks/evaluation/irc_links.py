"""Links and conversations of two rules on the development logs of irc-disentanglement.

    python tests/benchmarks/evaluation/irc_links.py [--data FOLDER] [--json FILE]

`previous message`: every message answers the last message before it. `addressed, then previous`: a message
that begins with the name of someone who has spoken answers the last message of that person. Else someone who
speaks for the first time starts a conversation, and every other message answers the last message before it.
In both, a line of the system is no message and has a link to itself, as in the annotations. The evaluation of
a run scores these rules too. The measures are those of docs/evaluation.md, over all annotated lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of harness and sides

from harness import machine, print_table, write_result

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Post, Tally
from retrieval.evaluation.measures.conversations import conversation_scores, conversations
from retrieval.evaluation.measures.links import Link, annotated_links, count_links
from retrieval.readers.threads.irc import read_threads
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.tasks.threads.link_rules import Rule, addressed_then_previous, previous_post


def main() -> None:
    """Print the table; with --json also write it."""
    parser = argparse.ArgumentParser(description="Links and conversations of two rules on IRC")
    parser.add_argument("--data", type=Path, help="folder of logs (default: $JORA_SHARED/data/irc/dev)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = machine()
    logs = args.data or Path(os.environ.get("JORA_SHARED", "../shared")) / "data" / "irc" / "dev"
    results = [measure(name, rule, logs) for name, rule in RULES.items()]
    print_table(
        [{key: value if isinstance(value, str) else f"{100 * value:.1f}" for key, value in row.items()}
         for row in results]
    )  # fmt: skip
    write_result(args.json, about, {"logs": str(logs.name)}, results, {})


def measure(name: str, rule: Rule, logs: Path) -> dict[str, Any]:
    """All measures of a rule, as shares."""
    gold = {log: links for log, links, _ in annotated(logs)}
    said = {log: predicted(rule, links, posts) for log, links, posts in annotated(logs)}
    links = count_links(gold, said).scores
    talks = conversation_scores(*({log: conversations(found) for log, found in side.items()}
                                  for side in (gold, said)))  # fmt: skip
    return {
        "Rule": name,
        "Link P": links.precision,
        "Link R": links.recall,
        "Link F1": links.f1,
        "1 − VI": talks.one_minus_vi,
        "ARI": talks.adjusted_rand_index,
        "One-to-one": talks.one_to_one,
        "Shen F1": talks.shen_f1,
        "Exact P": talks.exact_match.precision,
        "Exact R": talks.exact_match.recall,
        "Exact F1": talks.exact_match.f1,
    }


def annotated(logs: Path) -> Iterator[tuple[str, set[Link], list[Post]]]:
    """The name, the annotated links and the messages of each log, without lines of the system."""
    for path in sorted(logs.glob("*.ascii.txt")):
        name = path.name.removesuffix(".ascii.txt")
        lines = (logs / f"{name}.annotation.txt").read_text(encoding="utf-8").splitlines()
        file = ("", SourceFile(path, path.name))
        (thread,) = read_threads([file], ReaderOptions(missing_parents="drop"), Tally())
        yield name, annotated_links(lines), list(thread.posts)


def predicted(rule: Rule, gold: set[Link], posts: list[Post]) -> set[Link]:
    """The links of a rule, one for each annotated line."""
    answers = {int(post.id): int(posts[place].id) for post, place in zip(posts, rule(posts), strict=True)}
    return {(line, answers.get(line, line)) for line in {line for line, _ in gold}}


RULES: dict[str, Rule] = {
    "previous message": previous_post,
    "addressed, then previous": addressed_then_previous,
}

if __name__ == "__main__":
    main()
