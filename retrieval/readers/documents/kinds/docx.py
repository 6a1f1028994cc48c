"""Read DOCX files of Word and LibreOffice, by way of HTML: headings, lists, tables and footnotes stay."""

from __future__ import annotations

import zipfile

from jora_core.base.errors import InputError
from retrieval.corpus.source_files import SourceFile
from retrieval.corpus.types import Tally
from retrieval.readers.documents.kinds.html import html_text
from retrieval.readers.documents.kinds.kind_reader import LARGEST_UNPACKED, FileText


def read_file(file: SourceFile, tally: Tally) -> FileText:
    """Read a DOCX file. A file that is none is dropped and counted.

    Raises:
        InputError: the file cannot be read, or unpacks to too much.
    """
    import mammoth

    try:
        with zipfile.ZipFile(file.path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > LARGEST_UNPACKED:
            raise InputError(
                f"{file.path}: unpacks to {unpacked} bytes, more than {LARGEST_UNPACKED}; split the document"
            )
        with file.path.open("rb") as handle:
            # Pictures would become base64 text within the page.
            none = mammoth.images.img_element(lambda image: {})
            html = mammoth.convert_to_html(handle, convert_image=none).value
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({error.strerror})") from error
    except Exception:  # a broken file gives any exception, from the archive, the XML or the library
        return FileText("", "", "document_not_a_docx")
    return html_text(html, tally)
