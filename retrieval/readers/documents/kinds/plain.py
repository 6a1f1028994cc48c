"""Read text files: plain text, Markdown, reStructuredText and source code. Markup is kept."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import read_whole
from retrieval.readers.documents.kinds.kind_reader import FileText, decoded
from retrieval.text.normalize import fold

# An ATX heading of level one, with closing `#` signs left out: `# Title #`.
_HEADING = re.compile(r"^ {0,3}# +(.+?)(?: +#+)? *$", re.MULTILINE)
# A section title of reStructuredText, with a line of signs below it and perhaps one above.
_SECTION = re.compile(r"^(?:([=\-~^\"'#*+])\1+\r?\n)? *(\S.*?) *\r?\n([=\-~^\"'#*+])\3{2,} *$", re.MULTILINE)
_HEADINGS = {".md": (_HEADING, 1), ".markdown": (_HEADING, 1), ".rst": (_SECTION, 2)}


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read a text file. Its title is its first heading.

    Raises:
        UnreadableFile: the file is not UTF-8, or no text.
        InputError: the file cannot be opened, or is larger than the limits allow.
    """
    text = decoded(read_whole(file.path), file)
    kind = PurePosixPath(file.name).suffix.lower()
    pattern, group = _HEADINGS.get(kind, (None, 0))
    heading = pattern.search(text) if pattern else None
    if heading is None:
        return FileText("", text)
    if not text[: heading.start()].strip():
        # The title would stand in the prompt twice. Spaces in its place keep the offsets of all other text.
        text = " " * heading.end() + text[heading.end() :]
    return FileText(fold(heading[group]), text)
