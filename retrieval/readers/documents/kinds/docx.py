"""Read DOCX files of Word and LibreOffice, by way of HTML: headings, lists, tables and footnotes stay."""

from __future__ import annotations

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.corpus.unpacking import UnreadableFile
from retrieval.readers.documents.kinds.html import html_text
from retrieval.readers.documents.kinds.kind_reader import FileText, packed_document


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read a DOCX file.

    Raises:
        UnreadableFile: the file is no DOCX.
        InputError: the file cannot be opened, or unpacks to too much.
    """
    import mammoth

    try:
        with packed_document(file), file.path.open("rb") as handle:
            # Pictures would become base64 text within the page.
            none = mammoth.images.img_element(lambda image: {})
            html = mammoth.convert_to_html(handle, convert_image=none).value
    except InputError:
        raise
    except Exception as error:  # a broken file gives any exception, from the archive, the XML or the library
        reason = f"{type(error).__name__}: {error}"
        raise UnreadableFile(
            f"{file.path}: not a readable DOCX file ({reason:.200}); save it again", "not_a_docx"
        ) from error
    return html_text(html, tally)
