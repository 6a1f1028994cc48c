"""The 4chan reader over hand-written nasty posts, and its errors."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally, Thread
from retrieval.readers.threads.fourchan import parse_comment, read_threads
from retrieval.readers.threads.thread_reader import ReaderOptions

Write = Callable[[str, str], Path]

# (com of post in thread 100, text, links, links to other threads, dead links)
NASTY: list[tuple[str, str, tuple[str, ...], int, int]] = [
    ("plain words", "plain words", (), 0, 0),
    ("", "", (), 0, 0),
    ('<a href="#p101" class="quotelink">&gt;&gt;101</a><br>yes', "yes", ("101",), 0, 0),
    ('<a class="quotelink" href="#p101">&gt;&gt;101</a><br>yes', "yes", ("101",), 0, 0),
    ("<A HREF='#p101' CLASS=quotelink>&gt;&gt;101</A>yes", "yes", ("101",), 0, 0),
    ('<a href="#p101" class="quotelink">&gt;&gt;1<wbr>01</a> ok', "ok", ("101",), 0, 0),
    ("super<wbr>long<wbr>word", "superlongword", (), 0, 0),
    ('<a href="/b/thread/999#p998" class="quotelink">&gt;&gt;998</a> there', "there", (), 1, 0),
    ('<a href="/b/thread/100#p101" class="quotelink">&gt;&gt;101</a> here', "here", ("101",), 0, 0),
    ('<a href="100#p101" class="quotelink">&gt;&gt;101</a> old style', "old style", ("101",), 0, 0),
    ('<a href="/g/res/100.html#p101" class="quotelink">&gt;&gt;101</a> vichan', "vichan", ("101",), 0, 0),
    ('<a href="//boards.4chan.org/g/" class="quotelink">&gt;&gt;&gt;/g/</a> board', "board", (), 1, 0),
    ('<a class="quotelink">&gt;&gt;55</a> no target', "no target", (), 1, 0),
    ('<span class="deadlink">&gt;&gt;77</span> gone', "gone", (), 0, 1),
    ('<span class="deadlink">&gt;&gt;7<wbr>7</span><br>gone', "gone", (), 0, 1),
    ('<span class="quote">&gt;what you said</span><br>I disagree', "I disagree", (), 0, 0),
    ("&gt;implying by hand<br>no", "no", (), 0, 0),
    ("&gt;&gt;101 typed by hand", "typed by hand", (), 0, 0),
    ("&gt;&gt;&gt;/b/123 elsewhere", "elsewhere", (), 0, 0),
    ('<a href="#p100" class="quotelink">&gt;&gt;100</a> (OP)<br>thanks', "thanks", ("100",), 0, 0),
    (
        '<a href="#p101" class="quotelink">&gt;&gt;101</a><br><a href="#p102" class="quotelink">&gt;&gt;102'
        '</a><br><a href="#p101" class="quotelink">&gt;&gt;101</a> both',
        "both",
        ("101", "102"),
        0,
        0,
    ),
    (
        '<span class="quote">&gt;<a href="#p101" class="quotelink">&gt;&gt;101</a> quoted</span><br>mine',
        "mine",
        ("101",),
        0,
        0,
    ),
    ('<span class="quote">&gt;only green</span>', "", (), 0, 0),
    ("5 &gt; 4 &amp; 3 &lt; 4", "5 > 4 & 3 < 4", (), 0, 0),
    ("&quot;quoted&quot; &#039;word&#039; caf&eacute; &#x1F600;", "\"quoted\" 'word' café 😀", (), 0, 0),
    ("a<br><br/>b<p>c</p><div>d</div>e", "a b c d e", (), 0, 0),
    ("<s>spoiler</s> <b>bold</b><i>er</i>", "spoiler bolder", (), 0, 0),
    ('<pre class="prettyprint">x = 1<br>y = 2</pre>', "x = 1 y = 2", (), 0, 0),
    ("<script>alert(1)</script><style>p{}</style>safe", "safe", (), 0, 0),
    ("unclosed <b>bold <a href='#p101' class='quotelink'>&gt;&gt;101", "unclosed bold", ("101",), 0, 0),
    ("</div></body></html>after the end", "after the end", (), 0, 0),
    ("<!-- a comment -->seen<!-- unclosed", "seen", (), 0, 0),
    ("<frameset><html><head><title>t</title></head>text", "text", (), 0, 0),
    ("tabs\tand\xa0hard\u2003spaces \r\n lines", "tabs and hard spaces lines", (), 0, 0),
    ("null\x00byte", "nullbyte", (), 0, 0),
    ("<div>" * 3000 + "deep", "deep", (), 0, 0),
    ('<a href="https://example.org/#p5">a page</a>', "a page", (), 0, 0),
    ('<a href="#p0101" class="quotelink x">&gt;&gt;0101</a> zeros', "zeros", ("101",), 0, 0),
    ('<span class="quote deadlink">&gt;&gt;1</span>left', "left", (), 0, 1),
    (f'<a href="#p{"9" * 5000}" class="quotelink">&gt;&gt;9</a> far', "far", (), 1, 0),
    ('<a href="#p\u0661" class="quotelink">&gt;&gt;1</a> Arabic digit', "Arabic digit", (), 1, 0),
    ('<a href="/b/thread/999#p101" class="quotelink">&gt;&gt;101 \u2192</a><br>arrow', "arrow", (), 1, 0),
    ("&gt;be me<br>&gt;be quoted<br><br>what", "what", (), 0, 0),
    ('<span class="quote">&gt;a<br>&gt;b</span><br>after', "after", (), 0, 0),
    (
        '<a href="#p101" class="quotelink">&gt;&gt;101</a><a href="#p102" class="quotelink">x</a>',
        "",
        ("101", "102"),
        0,
        0,
    ),
    (
        '<table class="exif" id="exif1"><tr><td>Camera</td><td>X</td></tr></table>shot',
        "CameraX shot",
        (),
        0,
        0,
    ),
    ('<span class="sjis">  \u039b_\u039b</span>', "\u039b_\u039b", (), 0, 0),
    ('<span class="fortune" style="color:#f00">Your fortune: Good</span>', "Your fortune: Good", (), 0, 0),
    ("&#55357;&#0;&#x110000;odd", "\ufffd\ufffd\ufffdodd", (), 0, 0),
]


@pytest.mark.parametrize(("com", "text", "links", "cross", "dead"), NASTY, ids=range(len(NASTY)))
def test_nasty_comments(com: str, text: str, links: tuple[str, ...], cross: int, dead: int) -> None:
    found = parse_comment(com, "100")
    if "\x00" in com:
        assert found.text.replace("\ufffd", "").replace("\x00", "") == text
    else:
        assert found.text == text
    assert (found.links, found.cross_thread, found.dead) == (links, cross, dead)


PIECES = st.sampled_from(
    [
        "<a",
        ' class="quotelink"',
        ' href="#p1"',
        ">",
        "&gt;&gt;1",
        "</a>",
        "<br>",
        "<span class='quote'>",
        "</span>",
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.text(max_size=40) | st.lists(PIECES | st.text(max_size=5), max_size=15).map("".join))
def test_any_comment_gives_folded_text_without_links(com: str) -> None:
    found = parse_comment(com, "1")
    assert found.text == " ".join(found.text.split())
    assert ">>1" not in found.text


def read(path: Path, missing: Literal["error", "drop"] = "error") -> tuple[list[Thread], Tally]:
    """All threads of a file."""
    tally = Tally()
    return list(read_threads([("", SourceFile(path, path.name))], ReaderOptions(missing), tally)), tally


def line(*posts: dict[str, Any]) -> str:
    return json.dumps({"posts": list(posts)}) + "\n"


def test_threads_streams_and_counts(write: Write) -> None:
    first = {"no": 5, "resto": 0, "name": "Lena", "sub": "Kettles", "com": "Which one?"}
    quiet = {"no": 6, "resto": 5, "name": "Anonymous", "id": "aB3"}
    reply = {"no": 7, "resto": 5, "com": '<a href="#p6" class="quotelink">&gt;&gt;6</a> hm'}
    path = write("t.ndjson", line(reply, first, quiet, dict(quiet)) + "\n" + line({"no": 9, "com": "x"}))
    threads, tally = read(path)
    assert [t.id for t in threads] == ["5", "9"]
    assert [(p.id, p.author, p.text, p.parents) for p in threads[0].posts] == [
        ("5", "Lena", "Kettles. Which one?", ()),
        ("6", "aB3", "", ()),
        ("7", "Anonymous", "hm", ("6",)),
    ]
    assert [t.row for t in threads] == [1, 3]
    assert tally.as_dict()["dropped"] == {"post_number_twice": 1}
    assert tally.read["posts"] == 5


def test_the_labelled_dump_names_its_nameless(write: Write) -> None:
    labels = {"entities": [{"entity_text": "Ann"}], "perspectives": {"TOXICITY": 0.1}}
    posts = [
        {"no": 1, "name": "Anonymous", "com": "a", "extracted_poster_id": "Xy12", **labels},
        {"no": 2, "name": "Anonymous", "com": "b", "id": "Ab34", "extracted_poster_id": "Ab34", **labels},
        {"no": 3, "name": "Lena", "com": "c", "extracted_poster_id": "Cd56", **labels},
        {"no": 4, "com": "d", "extracted_poster_id": None, "entities": None, "perspectives": None},
    ]
    (thread,), tally = read(write("t.ndjson", line(*posts)))
    assert [(p.author, p.text) for p in thread.posts] == [
        ("Xy12", "a"),
        ("Ab34", "b"),
        ("Lena", "c"),
        ("Anonymous", "d"),
    ]
    assert tally.dropped.total() == 0


def test_dumps_stream_out_of_archives(tmp_path: Path) -> None:
    text = line({"no": 1, "com": "a"}).encode() + line({"no": 2, "com": "b"}).encode()
    bad = line({"no": 3, "com": "a"}).encode() + b"{broken\n"
    for name, files in (("good", {"pol/1.ndjson": text, "readme.txt": b"x"}), ("bad", {"pol/2.ndjson": bad})):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for member, content in files.items():
                about = tarfile.TarInfo(member)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        whole = (tmp_path / f"{name}.tar").read_bytes()
        # Two frames, as tools that pack in parallel write them.
        halves = [zstandard.compress(whole[:700]), zstandard.compress(whole[700:])]
        (tmp_path / f"{name}.tar.zst").write_bytes(b"".join(halves))
        (tmp_path / f"{name}.tar.gz").write_bytes(gzip.compress(whole))
    for suffix in ("tar", "tar.gz", "tar.zst"):
        threads, _ = read(tmp_path / f"good.{suffix}")
        assert [(t.id, t.row) for t in threads] == [("1", 1), ("2", 2)]
        with pytest.raises(InputError, match=rf"bad\.{suffix}/pol/2\.ndjson:2: broken JSON at column 2"):
            read(tmp_path / f"bad.{suffix}")


def test_gzip_and_single_json_read_the_same(write: Write, tmp_path: Path) -> None:
    text = line({"no": 1, "com": "a"}, {"no": 2, "com": "b"})
    plain, _ = read(write("t.ndjson", text))
    pretty, _ = read(write("t.json", json.dumps(json.loads(text), indent=2)))
    packed = tmp_path / "t.ndjson.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    zipped = tmp_path / "t.ndjson.zst"
    zipped.write_bytes(zstandard.compress(text.encode()))
    assert plain[0].posts == pretty[0].posts == read(packed)[0][0].posts == read(zipped)[0][0].posts
    zipped.write_bytes(zstandard.compress(text.encode())[:-4])
    with pytest.raises(
        InputError, match=r"t\.ndjson\.zst: cannot be read \(the file ends within a zstd frame"
    ):
        read(zipped)


def test_a_page_of_a_boards_index_holds_threads(write: Write) -> None:
    page = {"threads": [{"posts": [{"no": 1, "com": "a"}, {"no": 2, "com": "b"}]}, {"posts": [{"no": 9}]}]}
    threads, tally = read(write("1.json", json.dumps(page)))
    assert [[post.id for post in thread.posts] for thread in threads] == [["1", "2"], ["9"]]
    assert tally.read["threads"] == 2
    with pytest.raises(InputError, match="thread 1 is int; expected"):
        read(write("2.json", json.dumps({"threads": [page["threads"][0], 7]})))
    with pytest.raises(InputError, match="thread 0: thread without posts"):
        read(write("3.json", json.dumps({"threads": [{"no": 1, "last_replies": []}]})))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"posts": [{"no": 1}]}\n{"posts": [\n', r"t\.ndjson:2: broken JSON at column"),
        ('{"posts": []}\n', r"t\.ndjson:1: thread without posts"),
        ('{"post": []}\n', r"t\.ndjson:1: thread without posts"),
        ("[1]\n", r"t\.ndjson: item 1 \(line 1\): found int"),
        ('{"posts": [{"com": "x"}]}\n', r"t\.ndjson:1: post 1 of the thread has no number"),
        ('{"posts": [{"no": 1}, 7]}\n', r"t\.ndjson:1: post 2 of the thread has no number"),
        ('{"posts": [{"no": 1, "resto": "x"}]}\n', r't\.ndjson:1: field "resto" of post 1 is str'),
        ('{"posts": [{"no": 1, "com": [5]}]}\n', r't\.ndjson:1: field "com" of post 1 is list'),
        ("[" * 100_000, r"t\.ndjson:1: unusable JSON"),
        (
            '{"posts": [{"no": 3}, {"no": 4, "com": "<a href=\\"#p9\\" class=\\"quotelink\\">x</a>"}]}\n',
            r"t\.ndjson:1: post 4 replies to post 9, which is not in the thread",
        ),
    ],
)
def test_bad_lines_are_named(write: Write, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(write("t.ndjson", text))
    assert "\n" not in str(caught.value)


def test_missing_parents_can_be_dropped(write: Write) -> None:
    text = line({"no": 3}, {"no": 4, "com": '<a href="#p9" class="quotelink">&gt;&gt;9</a> x'})
    threads, tally = read(write("t.ndjson", text), "drop")
    assert threads[0].posts[1].parents == ()
    assert tally.dropped["link_to_missing_post"] == 1


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson"
    path.write_bytes(b'{"posts": [{"no": 1}]}\n\xff\xfe\n')
    with pytest.raises(InputError, match=r"t\.ndjson:2: not UTF-8"):
        read(path)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson.gz"
    path.write_bytes(gzip.compress(b'{"posts": [{"no": 1}]}\n' * 50)[:-20])
    with pytest.raises(InputError, match=r"t\.ndjson\.gz: cannot be read"):
        read(path)
