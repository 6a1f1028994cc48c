"""Valid files of every format, and how each is read with its rows counted."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.documents import stream_documents, stream_questions
from retrieval.readers.documents.instructions import read_triples
from retrieval.readers.tables import table_rows
from retrieval.readers.tables.mapped_tables import tables_with_questions
from retrieval.readers.tables.wikitables import read_tables
from retrieval.readers.threads.registry import read_threads
from retrieval.settings.columns import (
    Columns,
    DocumentColumns,
    QuestionColumns,
    TableColumns,
    TableQuestionColumns,
    ThreadColumns,
)
from retrieval.settings.tasks import ThreadsTask

from .fuzz_damage import (
    arrow,
    as_text,
    docx,
    epub,
    lines,
    parquet,
    pdf,
    pretty,
    rows_in_lines,
    rows_in_list,
    rows_in_parquet,
    sheet,
    tar_zst,
    zipped,
)

POSTS = [
    {
        "posts": [
            {"no": 1, "resto": 0, "time": 10, "name": "Ann", "sub": "Kettles", "com": "Which <b>one</b>?"},
            {
                "no": 2,
                "resto": 1,
                "time": 11,
                "name": "Anonymous",
                "id": "Ab1",
                "entities": [],
                "perspectives": {},
            },
            {
                "no": 3,
                "resto": 1,
                "time": 12,
                "com": '<a href="#p1" class="quotelink">&gt;&gt;1</a><br>the red one',
            },
        ]
    },
    {
        "posts": [
            {"no": 7, "time": 20, "com": "alone"},
            {
                "no": 8,
                "resto": 7,
                "com": '<span class="deadlink">&gt;&gt;3</span> <a href="/b/thread/1#p2" '
                'class="quotelink">x</a>',
            },
            {
                "no": 9,
                "resto": 7,
                "com": '<a class="quotelink" href="#p7">&gt;&gt;7</a> and <a class="quotelink" '
                'href="#p8">y</a>',
            },
        ]
    },
]

UTTERANCES = [
    {
        "id": f"u{i}",
        "conversation_id": f"u{i - i % 3}",
        "speaker": f"s{i}",
        "text": f"words {i}",
        "reply-to": f"u{i - 1}" if i % 3 else None,
        "timestamp": 100 + i,
    }
    for i in range(6)
]

STATUSES = [
    {
        "id": str(i),
        "in_reply_to_id": str(i // 2) if i > 1 else None,
        "content": f"<p>toot {i}</p>",
        "reblog": None,
        "created_at": f"2024-05-01T00:00:0{i}Z",
        "spoiler_text": "",
        "account": {"acct": f"a{i}@x.org"},
    }
    for i in range(1, 6)
]

EXPORT = {
    "guild": {"id": "1"},
    "channel": {"id": "5", "name": "general"},
    "messages": [
        {
            "id": str(i),
            "type": "Reply" if i > 1 else "Default",
            "timestamp": f"2024-05-01T00:00:0{i}+00:00",
            "content": f"<@1> said {i}",
            "author": {"id": "1", "name": "ann", "nickname": "Ann"},
            "mentions": [{"id": "1", "name": "ann"}],
            "reference": {"messageId": str(i - 1)} if i > 1 else None,
        }
        for i in range(1, 6)
    ],
}

API = [
    {
        "id": str(i),
        "channel_id": "5",
        "type": 19 if i > 1 else 0,
        "timestamp": f"2024-05-01T00:00:0{i}Z",
        "content": f"said {i}",
        "author": {"username": "ann", "global_name": None},
        "message_reference": {"message_id": str(i - 1)} if i > 1 else None,
    }
    for i in range(1, 6)
]

SLACK = [
    {
        "type": "message",
        "user": f"U{i % 2}",
        "ts": f"171452160{i}.000100",
        "text": f"<@U1> said {i} &amp; <https://x.org|left>",
        "user_profile": {"display_name": "", "real_name": f"Name {i % 2}"},
        "thread_ts": f"171452160{i // 2}.000100",
    }
    for i in range(5)
] + [
    {"type": "message", "subtype": "channel_join", "user": "U1", "ts": "1714521609.000100", "text": "joined"}
]

TELEGRAM = {
    "name": "Kitchen",
    "type": "private_group",
    "id": 5,
    "messages": [
        {
            "id": i,
            "type": "message" if i else "service",
            "date_unixtime": str(100 + i),
            "from": f"Name {i % 2}",
            "from_id": f"user{i % 2}",
            "text": [f"said {i} ", {"type": "bold", "text": "x"}],
            "reply_to_message_id": i - 1,
        }
        for i in range(5)
    ],
}
REDDIT = [{"id": "s", "subreddit": "x", "author": "a", "title": "T", "selftext": "", "created_utc": 100}] + [
    {
        "id": f"c{i}",
        "subreddit": "x",
        "author": f"a{i}",
        "body": f"&gt; quoted\n\nsaid {i}",
        "link_id": "t3_s",
        "parent_id": f"t1_c{i - 1}" if i else "t3_s",
        "created_utc": str(101 + i),
    }
    for i in range(4)
]
ITEMS = [
    {
        "id": i,
        "type": "comment" if i else "story",
        "by": f"a{i}",
        "text": f"<p>{i}",
        "parent": i - 1,
        "time": i,
    }
    for i in range(5)
]
OUTBOX = {
    "@context": "https://www.w3.org/ns/activitystreams",
    "type": "OrderedCollection",
    "orderedItems": [
        {
            "id": f"https://x.org/{i}/activity",
            "type": "Create" if i < 4 else "Announce",
            "actor": "https://x.org/users/ann",
            "object": {
                "id": f"https://x.org/{i}",
                "type": "Note",
                "inReplyTo": f"https://x.org/{i - 1}" if i else None,
                "published": f"2024-05-01T00:00:0{i}Z",
                "content": f"<p>said {i}</p>",
            },
        }
        for i in range(5)
    ],
}
ARCHIVE = {
    "570368": {
        "op": {"num": "570368", "thread_num": "570368", "name": "Ann", "comment": "q", "timestamp": 1},
        "posts": {
            str(n): {"num": str(n), "thread_num": "570368", "trip": "!a", "comment": f">>{n - 1}\nsaid"}
            for n in range(570369, 570372)
        },
    }
}
ISSUES = [
    {
        "number": 7,
        "url": "https://api.github.com/repos/o/r/issues/7",
        "title": "T",
        "body": "b",
        "user": {"login": "ann"},
        "created_at": "2024-05-01T00:00:00Z",
    }
] + [
    {
        "id": i,
        "issue_url": "https://api.github.com/repos/o/r/issues/7",
        "body": f"> b\nsaid {i}",
        "user": {"login": "bob"},
        "created_at": f"2024-05-01T00:00:0{i}Z",
    }
    for i in range(1, 4)
]
POSTS_XML = [
    "<posts>",
    *(
        f'<row Id="{i}" PostTypeId="{min(i, 2)}" ParentId="{1 if i > 1 else ""}" Body="&lt;p&gt;{i}" />'
        for i in range(1, 5)
    ),
    "</posts>",
]
MAILS = [
    line
    for i in range(3)
    for line in (
        f"From a@x.org Wed May  1 00:00:0{i} 2024",
        f"From: A{i} <a{i}@x.org>",
        f"Message-ID: <{i}@x>",
        *([f"In-Reply-To: <{i - 1}@x>"] if i else []),
        "Content-Type: text/plain; charset=utf-8",
        "",
        f"> quoted\nsaid {i}",
        "",
    )
]
TABLE = ["id;who;text;reply_to", *(f'{i};a{i};"said; {i}";{i - 1 if i else ""}' for i in range(4))]

TABLE_OBJECTS = [
    {"id": f"{i}", "who": f"a{i}", "text": f"said {i}", "reply_to": f"{i - 1}" if i else None}
    for i in range(4)
]
HITS = [
    {
        "objectID": str(i),
        "author": f"a{i}",
        "comment_text": f"<p>{i}",
        "parent_id": i - 1 if i else None,
        "story_id": 0,
        "created_at_i": i,
    }
    for i in range(4)
]
LISTING = {
    "kind": "Listing",
    "data": {"children": [{"kind": "t3" if "title" in row else "t1", "data": row} for row in REDDIT]},
}
PARAGRAPHS = ["Some text.", "More of it.", "The end."]

LOG = [f"[03:4{i}] <nick{i}> line {i}" for i in range(5)] + ["=== joined", "[03:50] * nick1 waves"]
NOTES = ["0 0 -", "0 1 -", "1 2 -", "4 3 -", "1 4 -", "4 6 -"]
TSV = [
    ["id", "utterance", "context", "targetValue"],
    ["q1", "who\\n?", "csv/1.csv", "a|b\\pc"],
    ["q2", "when?", "csv/1.csv", "2"],
]
CSV = ['"Name","Year"', '"a \\"b\\"","1"', '"two\nlines","2"', '"short"']

DOCUMENTS = [{"id": f"d{i}", "title": f"T{i}", "text": f"Text {i}.", "time": 100 + i} for i in range(4)]
QUESTIONS = [
    {"id": f"q{i}", "document_id": f"d{i}", "question": f"What {i}?", "answers": [f"a{i}", "b"], "time": 200}
    for i in range(4)
]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "A_Title",
            "paragraphs": [
                {
                    "context": f"The answer {i} is here.",
                    "qas": [
                        {
                            "id": f"s{i}",
                            "question": "Which?",
                            "answers": [{"text": "here", "answer_start": 16}],
                            "is_impossible": False,
                        },
                        {"id": f"n{i}", "question": "None?", "answers": [], "is_impossible": True},
                    ],
                }
                for i in range(3)
            ],
        }
    ],
}
SQUAD_ROWS = [
    {
        "id": f"s{i}",
        "title": "T",
        "context": f"The answer {i // 2} is here.",
        "question": "Which?",
        "answers": {"text": ["here"], "answer_start": [16]},
    }
    for i in range(4)
]
HOTPOT = [
    {
        "_id": f"h{i}",
        "question": "Which?",
        "answer": "yes",
        "supporting_facts": [["A", 0], ["B", 1]],
        "context": [["A", ["One.", " Two."]], ["B", [f"Three {i}.", " Four."]], ["C", ["Five."]]],
    }
    for i in range(3)
]

RAFT = [
    {
        "id": f"seed_task_{i}",
        "type": "general",
        "question": "Which?",
        "context": {"sentences": [[f"Text {i}.", f"Text {i + 1}."]], "title": [["placeholder_title"] * 2]},
        "oracle_context": f"Text {i}.",
        "cot_answer": f"Because. <ANSWER>: a{i}" if i else "It does not say.",
        "instruction": "<DOCUMENT>…",
    }
    for i in range(3)
]

DPR = [
    {
        "question": "Which?",
        "answers": [f"a{i}"],
        "positive_ctxs": [{"title": "T", "text": f"Text {i}."}],
        "negative_ctxs": [],
        "hard_negative_ctxs": [{"title": "", "text": "Other."}],
    }
    for i in range(3)
]
MS_MARCO = [
    {
        "query": "which?",
        "query_id": i,
        "answers": [f"a{i}"] if i else ["No Answer Present."],
        "passages": {"passage_text": [f"Text {i}.", "Other."], "is_selected": [1, 0]},
    }
    for i in range(3)
]
NATURAL_QUESTIONS = [
    {
        "example_id": i,
        "question_text": "which?",
        "document_text": f"<P> Text {i} . </P> <P> Other . </P>",
        "long_answer_candidates": [
            {"start_token": 0, "end_token": 5, "top_level": True},
            {"start_token": 5, "end_token": 9, "top_level": True},
        ],
        "annotations": [
            {
                "long_answer": {"start_token": 0, "end_token": 5},
                "short_answers": [{"start_token": 2, "end_token": 3}],
                "yes_no_answer": "NONE",
            }
        ],
    }
    for i in range(3)
]
MUSIQUE = [
    {
        "id": f"2hop__{i}",
        "paragraphs": [
            {"idx": k, "title": f"T{k}", "paragraph_text": f"Text {i} {k}.", "is_supporting": k == 0}
            for k in range(2)
        ],
        "question": "which?",
        "answer": f"a{i}",
        "answer_aliases": [f"b{i}"],
        "answerable": i > 0,
    }
    for i in range(3)
]
NATURAL_QUESTIONS_OF_THE_HUB = [
    {
        "id": str(i),
        "document": {
            "title": "T",
            "tokens": {"token": ["<P>", "Text", str(i), "</P>"], "is_html": [True] * 4},
        },
        "question": {"text": "which?"},
        "long_answer_candidates": {"start_token": [0], "end_token": [4], "top_level": [True]},
        "annotations": {
            "id": ["a"],
            "long_answer": [{"start_token": 0, "end_token": 4}],
            "short_answers": [{"start_token": [2], "end_token": [3], "text": [str(i)]}],
            "yes_no_answer": [-1],
        },
    }
    for i in range(3)
]
CORPUS = [{"_id": f"d{i}", "title": "T", "text": f"Text {i}."} for i in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}]}
    for i in range(4)
]
TABLE_ROWS = [
    {
        "id": f"t{i}",
        "question": "which?",
        "answers": [f"a{i}"],
        "table": {"header": ["A", "B"], "rows": [["a0", "1"], ["a1", ""]], "name": f"csv/{i}.csv"},
    }
    for i in range(3)
]
WIKISQL = [
    {
        "phase": 1,
        "question": "which?",
        "table_id": "1-1",
        "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, f"{i}"]]},
    }
    for i in range(3)
]
WIKISQL_TABLES = [{"id": "1-1", "header": ["A", "B"], "rows": [[f"a{i}", i] for i in range(3)]}]
PAGE = [
    "<title>T</title><h1>Lamp</h1>",
    "<p>Some <b>text</b>.<table><tr><td>a<td>b</table>",
    "<pre>x\n  y</pre>",
]

TRIPLES = [{"id": i, "instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(4)]

Counts = tuple[int, int, int]


def count_threads(path: Path) -> tuple[Counts, list[Any]]:
    """(posts read, given, dropped) of a thread source."""
    tally = Tally()
    threads = list(read_threads(ThreadsTask(source=str(path), missing_parents="drop"), tally))
    given = sum(len(thread.posts) for thread in threads)
    links = sum(len(post.parents) for thread in threads for post in thread.posts)
    lost = sum(count for why, count in tally.dropped.items() if why.startswith("link_"))
    if not path.name.endswith(".ascii.txt"):
        assert tally.read["links"] == links + lost
        return (tally.read["posts"], given, _dropped(tally, "post_")), threads
    return (tally.read["lines"], given, tally.dropped["system_line"]), threads


def count_mapped(path: Path) -> tuple[Counts, list[Any]]:
    """(posts read, given, dropped) of a table with a mapping."""
    tally = Tally()
    columns = ThreadColumns(id="id", text="text", parent="reply_to", author="who")
    threads = list(read_threads(ThreadsTask(source=str(path), columns=columns), tally))
    given = sum(len(thread.posts) for thread in threads)
    return (tally.read["posts"], given, _dropped(tally, "post_")), threads


def count_documents(path: Path) -> tuple[Counts, list[Any]]:
    """(documents read, given, dropped) of a file."""
    tally = Tally()
    found = list(stream_documents([SourceFile(path, path.name)], tally))
    return (tally.read["documents"], len(found), _dropped(tally, "document_")), found


def mapped_file(path: Path, columns: Columns) -> SourceFile:
    """A file that is read by a mapping."""
    return SourceFile(path, path.name, columns, "qa.columns")


def count_mapped_documents(path: Path) -> tuple[Counts, list[Any]]:
    """(documents read, given, dropped) of a table with a mapping."""
    tally = Tally()
    columns = DocumentColumns(id="id", text="text", title="{{ who }}")
    found = list(stream_documents([mapped_file(path, columns)], tally, layout="documents"))
    return (tally.read["documents"], len(found), _dropped(tally, "document_")), found


def count_mapped_questions(path: Path) -> tuple[Counts, list[Any]]:
    """(questions read, given, dropped) of a table with a mapping."""
    tally = Tally()
    columns = QuestionColumns(id="id", question="text", answers="who", document_id="id")
    found = list(stream_questions([mapped_file(path, columns)], _Any(), tally, layout="documents"))
    return (tally.read["questions"], len(found), _dropped(tally, "question_")), found


class _Any:
    """Every id."""

    def __contains__(self, key: object) -> bool:
        return True


def count_questions(path: Path) -> tuple[Counts, list[Any]]:
    """(questions read, given, dropped) of a file."""
    tally = Tally()
    found = list(stream_questions([SourceFile(path, path.name)], _Any(), tally))
    return (tally.read["questions"], len(found), _dropped(tally, "question_")), found


def count_triples(path: Path) -> tuple[Counts, list[Any]]:
    """(instructions read, given, dropped) of a file."""
    tally = Tally()
    found = list(read_triples([SourceFile(path, path.name)], tally))
    return (tally.read["instructions"], len(found), _dropped(tally, "instruction_")), found


def count_tables(path: Path) -> tuple[Counts, list[Any]]:
    """(questions read, given, dropped) of a table source."""
    tally = Tally()
    tsv = path if path.suffix == ".tsv" else path.parent.parent / "data" / "training.tsv"
    tables, questions = read_tables(tsv.parent.parent, tsv, tally, tsv.name)
    return (tally.read["questions"], len(questions), _dropped(tally, "question_")), [
        *tables.values(),
        *questions,
    ]


def count_rows_with_tables(path: Path) -> tuple[Counts, list[Any]]:
    """(questions read, given, dropped) of a file whose rows bring their table along."""
    tally = Tally()
    tables, questions = table_rows.read_tables(path.parent, path, tally, path.name)
    return (tally.read["questions"], len(questions), _dropped(tally, "question_")), [
        *tables.values(),
        *questions,
    ]


def count_mapped_tables(path: Path) -> tuple[Counts, list[Any]]:
    """(questions read, given, dropped) of a file whose rows bring their table along, by a mapping."""
    tally = Tally()
    asked = TableQuestionColumns(question="question", answers="answers", id="id")
    file = SourceFile(path, path.name)
    tables, questions = tables_with_questions([file], TableColumns(cells="table"), asked, tally, False)
    return (tally.read["questions"], len(questions), _dropped(tally, "question_")), [
        *tables.values(),
        *questions,
    ]


def _dropped(tally: Tally, kind: str) -> int:
    return sum(count for why, count in tally.dropped.items() if why.startswith(kind))


@dataclass(frozen=True)
class Format:
    """A valid file, how it is written, and who reads it; `beside` are further files, by name.

    `present` counts the rows of a file without the readers, for formats in which each row is one item.
    """

    name: str
    rows: Any
    pack: Callable[[Any], bytes]
    read: Callable[[Path], tuple[Counts, list[Any]]]
    cases: int
    beside: tuple[tuple[str, bytes], ...] = ()
    present: Callable[[bytes], int | None] | None = None


FORMATS = [
    Format("threads.ndjson", POSTS, lines, count_threads, 300),
    Format("threads.json", POSTS, pretty, count_threads, 60),
    Format("threads.ndjson.gz", POSTS, lambda rows: gzip.compress(lines(rows), mtime=0), count_threads, 60),
    Format("threads.jsonl.zst", POSTS, lambda rows: zstandard.compress(lines(rows)), count_threads, 60),
    Format("dump.tar.zst", POSTS, tar_zst, count_threads, 60),
    Format("utterances.jsonl", UTTERANCES, lines, count_threads, 160, present=rows_in_lines),
    Format("statuses.jsonl", STATUSES, lines, count_threads, 160, present=rows_in_lines),
    Format("export.json", EXPORT, pretty, count_threads, 140),
    Format("channel.jsonl", API, lines, count_threads, 100, present=rows_in_lines),
    Format("general/2024-05-01.json", SLACK, pretty, count_threads, 100, present=rows_in_list),
    Format("result.json", TELEGRAM, pretty, count_threads, 80),
    Format("reddit.jsonl", REDDIT, lines, count_threads, 80, present=rows_in_lines),
    Format("items.jsonl", ITEMS, lines, count_threads, 80, present=rows_in_lines),
    Format("outbox.json", OUTBOX, pretty, count_threads, 80),
    Format("archive.json", ARCHIVE, pretty, count_threads, 80),
    Format("issues.json", ISSUES, pretty, count_threads, 80, present=rows_in_list),
    Format("Posts.xml", POSTS_XML, as_text, count_threads, 60),
    Format("list.mbox", MAILS, as_text, count_threads, 60),
    Format("table.csv", TABLE, as_text, count_mapped, 80),
    Format("table.jsonl.xz", REDDIT, lambda rows: lzma.compress(lines(rows)), count_threads, 40),
    Format("log.ascii.txt", LOG, as_text, count_threads, 80, (("log.annotation.txt", as_text(NOTES)),)),
    Format(
        "log.annotation.txt",
        NOTES,
        as_text,
        lambda p: count_threads(p.with_name("log.ascii.txt")),
        80,
        (("log.ascii.txt", as_text(LOG)),),
    ),
    Format("data/training.tsv", TSV, as_text, count_tables, 80, (("csv/1.csv", as_text(CSV)),)),
    Format("csv/1.csv", CSV, as_text, count_tables, 60, (("data/training.tsv", as_text(TSV)),)),
    Format("documents.jsonl", DOCUMENTS, lines, count_documents, 80, present=rows_in_lines),
    Format("documents.parquet", DOCUMENTS, parquet, count_documents, 80, present=rows_in_parquet),
    Format("questions.jsonl", QUESTIONS, lines, count_questions, 80, present=rows_in_lines),
    Format("questions.parquet", QUESTIONS, parquet, count_questions, 60, present=rows_in_parquet),
    Format("squad.json", SQUAD, pretty, count_documents, 60),
    Format("squad-questions.json", SQUAD, pretty, count_questions, 80),
    Format("squad.parquet", SQUAD_ROWS, parquet, count_questions, 40, present=rows_in_parquet),
    Format("hotpot.json", HOTPOT, pretty, count_documents, 60),
    Format("hotpot-questions.json", HOTPOT, pretty, count_questions, 80, present=rows_in_list),
    Format("raft.jsonl", RAFT, lines, count_documents, 60),
    Format("raft.parquet", RAFT, parquet, count_questions, 40, present=rows_in_parquet),
    Format("alpaca.jsonl", TRIPLES, lines, count_triples, 60, present=rows_in_lines),
    Format("dpr.json", DPR, pretty, count_documents, 40),
    Format("dpr-questions.jsonl", DPR, lines, count_questions, 60, present=rows_in_lines),
    Format("ms_marco.jsonl", MS_MARCO, lines, count_documents, 40),
    Format("ms_marco-questions.parquet", MS_MARCO, parquet, count_questions, 40, present=rows_in_parquet),
    Format("nq.jsonl", NATURAL_QUESTIONS, lines, count_documents, 40),
    Format("nq-questions.jsonl", NATURAL_QUESTIONS, lines, count_questions, 60, present=rows_in_lines),
    Format("musique.jsonl", MUSIQUE, lines, count_documents, 40),
    Format("musique-questions.jsonl", MUSIQUE, lines, count_questions, 40, present=rows_in_lines),
    Format("nq-hub.jsonl", NATURAL_QUESTIONS_OF_THE_HUB, lines, count_questions, 60, present=rows_in_lines),
    Format("mapped-tables.jsonl", TABLE_ROWS, lines, count_mapped_tables, 60, present=rows_in_lines),
    Format("corpus.jsonl", CORPUS, lines, count_documents, 40, present=rows_in_lines),
    Format("chats.jsonl", CHATS, lines, count_triples, 60, present=rows_in_lines),
    Format("tables.jsonl", TABLE_ROWS, lines, count_rows_with_tables, 60, present=rows_in_lines),
    Format("tables.parquet", TABLE_ROWS, parquet, count_rows_with_tables, 40, present=rows_in_parquet),
    Format("page.html", PAGE, as_text, count_documents, 40),
    Format("page.md", ["# Title", "Some text.", "More."], as_text, count_documents, 20),
    Format("page.pdf", ["Some text.", "More of it."], pdf, count_documents, 60),
    Format("page.docx", PARAGRAPHS, docx, count_documents, 30),
    Format("page.epub", PARAGRAPHS, epub, count_documents, 30),
    Format("code.py", ["def f():", "    return 1"], as_text, count_documents, 20),
    Format("table.xlsx", TABLE, sheet, count_mapped, 30),
    Format("table.arrow", TABLE_OBJECTS, arrow, count_mapped, 30),
    Format("documents.csv", TABLE, as_text, count_mapped_documents, 40),
    Format("questions.tsv", [row.replace(";", "\t") for row in TABLE], as_text, count_mapped_questions, 40),
    Format("slack.zip", SLACK, zipped("general/2024-05-01.json"), count_threads, 30),
    Format("mails/1.eml", MAILS[1:8], as_text, count_threads, 30),
    Format("hits.json", {"hits": HITS}, pretty, count_threads, 40),
    Format(
        "context.json", {"ancestors": STATUSES[:1], "descendants": STATUSES[1:]}, pretty, count_threads, 40
    ),
    Format("listing.json", LISTING, pretty, count_threads, 40),
    Format(
        "wikisql.jsonl",
        WIKISQL,
        lines,
        count_rows_with_tables,
        40,
        (("wikisql.tables.jsonl", lines(WIKISQL_TABLES)),),
        rows_in_lines,
    ),
    Format(
        "wikisql.tables.jsonl",
        WIKISQL_TABLES,
        lines,
        lambda path: count_rows_with_tables(path.with_name("wikisql.jsonl")),
        30,
        (("wikisql.jsonl", lines(WIKISQL)),),
    ),
]
