"""Mailing lists: mbox files, such as the monthly archives of Mailman, and single messages (`.eml`).

In an mbox file, a line `From …` starts a message. A mail answers the one that `In-Reply-To` names, else the
last one of `References`. Mails that replies connect are a thread. The plain text is read, else the HTML.
Quoted lines, the line before them (`On … wrote:`), the mail that Outlook repeats below an answer, and
signatures are removed. Format: RFC 4155, RFC 5322
"""

from __future__ import annotations

import email.policy
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import parseaddr, parsedate_to_datetime

from jora_core.base.errors import InputError
from retrieval.corpus.reading_limits import reading_limits
from retrieval.corpus.source_files import SourceFile, unpacked_name
from retrieval.corpus.types import Tally, Thread
from retrieval.corpus.unpacking import open_binary
from retrieval.readers.threads.fourchan import parse_comment
from retrieval.readers.threads.message_tree import Message, files_by_split, threads_of
from retrieval.readers.threads.thread_reader import ReaderOptions
from retrieval.text.labels import ANONYMOUS, titled
from retrieval.text.message_text import without_quotes
from retrieval.text.normalize import fold
from retrieval.text.times import parse_time

_START = re.compile(rb"From \S+.*\d{4}\r?\n?$")
_ID = re.compile(r"<([^<>\s]+)>")
#: The line before a quotation, over one or two lines.
_WROTE = re.compile(
    r"^(?:On|Am|Le|El|Op)\b.{0,200}?(?:wrote|schrieb|écrit|escribió|schreef)[^\n]{0,80}:\s*$", re.M | re.S
)
#: What Outlook puts before the whole mail that is answered, which it does not mark line by line.
_ORIGINAL = re.compile(
    r"^[ \t]*-{2,} ?(?:Original Message|Original Appointment|Ursprüngliche Nachricht|Message d'origine"
    r"|Mensaje original|Messaggio originale|Oorspronkelijk bericht) ?-{2,}[ \t]*$"
    r"|^[ \t]*_{10,}\s+(?=(?:From|Von|De|Da|Van)\s?:)"
    r"|^(?=\**(?:From|Von|De|Da|Van)\s?:.*\n\**(?:Sent|Gesendet|Envoyé|Enviado|Inviato|Verzonden)\s?:)",
    re.M | re.I,
)
_ORIGINAL_HTML = re.compile(r"<div\b[^>]*\bid=[\"']?(?:x_)?(?:divRplyFwdMsg|appendonsend)\b", re.I)
_SIGNATURE = re.compile(r"^-- ?$", re.M)
_REPLY = re.compile(r"^(?:(?:re|aw|sv|fwd?)\s*:\s*|\[[^\]]*\]\s*)+", re.I)
# Mailman writes `ann at example.org (Ann)` in place of the address.
_HIDDEN_ADDRESS = re.compile(r"^\S+ at \S+ \((.+)\)$")


def read_threads(
    files: list[tuple[str, SourceFile]], options: ReaderOptions, tally: Tally
) -> Iterator[Thread]:
    """Read each set of mails that replies connect as a thread.

    Args:
        files: (split, file) pairs; the split is "" where the seed decides it.
        options: `missing_parents` decides about replies to missing mails.
        tally: counts files, posts, threads and links, and what was dropped.

    Raises:
        InputError: a file holds no mail, or a reply refers to a missing mail.
    """
    for split, own in files_by_split(files, tally):
        yield from threads_of(_messages(own), split, options.missing_parents, False, tally)


def _messages(files: list[SourceFile]) -> Iterator[Message]:
    parser = BytesParser(EmailMessage, policy=email.policy.default)
    for file in files:
        for number, (line, raw) in enumerate(_mails(file), start=1):
            mail = parser.parsebytes(raw)
            assert isinstance(mail, EmailMessage)
            yield _message(mail, f"{file.path}:{line}", number, file)


def _mails(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, bytes) of each mail of a file.

    Raises:
        InputError: the file has no line `From …`, or a mail is larger than the limits allow.
    """
    limits = reading_limits()
    most = limits.value_bytes
    with open_binary(file.path) as handle:
        if unpacked_name(file.path).endswith(".eml"):
            raw = handle.read(most + 1)
            if len(raw) > most:
                raise limits.value_too_large(str(file.path), "a mail")
            yield 1, raw
            return
        number, first, lines, size, blank = 0, 0, [], 0, True
        while line := handle.readline(most + 1):
            number += 1
            if blank and line.startswith(b"From ") and _START.match(line):
                if first:
                    yield first, b"".join(lines)
                first, lines, size, blank = number, [], 0, False
                continue
            if not first:
                if line.strip():
                    raise InputError(
                        f"{file.path}:{number}: no mbox file; expected a line such as "
                        "`From ann@x.org Wed May  1 00:00:00 2024` before each mail"
                    )
                continue
            blank = not line.strip()
            size += len(line)
            if size > most:
                raise limits.value_too_large(f"{file.path}:{first}", "a mail")
            # mboxrd puts `>` before lines of a text that begin with `From `.
            lines.append(line[1:] if re.match(rb">+From ", line) else line)
        if first:
            yield first, b"".join(lines)


def _message(mail: EmailMessage, where: str, row: int, file: SourceFile) -> Message:
    """Return one mail.

    Args:
        mail: the parsed mail.
        where: file and line, for errors.
        row: the number of the mail in its file.
        file: its file.
    """
    own = _ID.search(_header(mail, "message-id"))
    answered = _ID.findall(_header(mail, "in-reply-to")) or _ID.findall(_header(mail, "references"))[-1:]
    text = fold(_text(mail, bool(answered)))
    subject = _REPLY.sub("", _header(mail, "subject"))
    return Message(
        where,
        own[1] if own else f"{file.name}:{row}",
        _author(_header(mail, "from")),
        # A reply repeats the subject of what it answers.
        text if answered else titled(subject, text) if text else subject,
        file.name,
        row,
        answered[0] if answered else "",
        time=_time(_header(mail, "date"), where),
    )


def _header(mail: EmailMessage, name: str) -> str:
    """Return a header as text, or "" without one."""
    # Raw: the parser of the library drops what it does not understand, such as names in round brackets.
    raw = next((str(value) for key, value in mail.raw_items() if key.lower() == name), "")
    try:
        text = str(make_header(decode_header(fold(raw))))
    except (ValueError, LookupError, HeaderParseError):  # an unknown charset, damaged base64
        text = raw
    return fold(text.encode("utf-8", "replace").decode())


def _author(value: str) -> str:
    hidden = _HIDDEN_ADDRESS.match(value)
    if hidden:
        return hidden[1]
    name, address = parseaddr(value)
    return fold(name) or address or value or ANONYMOUS


def _time(value: str, where: str) -> float | None:
    try:
        return parse_time(parsedate_to_datetime(value), "Date", where) if value else None
    # A date that is none is common in old archives; the mail then has no time.
    except (ValueError, TypeError, OverflowError, InputError):
        return None


def _text(mail: EmailMessage, is_reply: bool) -> str:
    """Return the text of a mail, and of a reply without what it answers."""
    try:
        part = mail.get_body(("plain", "html"))
    except Exception:  # damaged structures of parts
        part = None
    part = part or (None if mail.is_multipart() else mail)
    if part is None:
        return ""
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return ""
    try:
        text = raw.decode(part.get_content_charset() or "utf-8")
    except (UnicodeDecodeError, LookupError):
        text = raw.decode("latin-1")  # what old mails without a right charset mostly are
    if part.get_content_type() == "text/html":
        own = _ORIGINAL_HTML.split(text, maxsplit=1)[0] if is_reply else text
        return parse_comment(own, "", is_reply).text
    text = _SIGNATURE.split(text.replace("\r\n", "\n"), maxsplit=1)[0]
    text = without_quotes(_WROTE.sub("", text))
    return _ORIGINAL.split(text, maxsplit=1)[0] if is_reply else text
