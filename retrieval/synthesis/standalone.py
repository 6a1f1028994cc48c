"""Whether a question can be understood without the text that it was made of, and whether it tells its source.

The phrases are those with which models point at a text that the reader does not see, in the languages of the
table. A question in another language is checked for the rest only.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath

#: Nouns for the text itself, after "this", "the above" and the like, by language.
_POINTERS: dict[str, tuple[str, str, str]] = {
    # (pointing words, nouns, whole phrases)
    "en": (
        r"this|these|the (?:above|following|given|provided|present|first|second)",
        r"text|texts|passage|passages|document|section|chapter|article|paragraph|page|excerpt|chunk|table|"
        r"figure|list|example|snippet|author|authors|study|paper|context|image|equation|statement|code",
        r"according to (?:the |this )?(?:text|passage|document|article|excerpt|context|author|paragraph|"
        r"section)|in (?:the|this) (?:text|passage|document|article|excerpt|context|paragraph)|mentioned "
        r"(?:above|here|below)|described (?:above|here|below)|(?:the|this) (?:text|passage|excerpt) (?:say|"
        r"says|mention|mentions|describe|describes|state|states)|text [12]\b|the author (?:above|say|says|"
        r"mention|mentions)|does the (?:text|passage|document|article|author|excerpt|context)|(?:name|title|"
        r"author|subject|topic|purpose|writer) of the (?:text|passage|document|article|excerpt|paragraph|"
        r"section)|wrote the (?:text|passage|document|article|excerpt|paragraph)|this one|of the "
        r"following",
    ),
    "de": (
        r"dies(?:e|er|es|em|en)|(?:der|die|das|dem|den) (?:obige|obigen|folgende|folgenden|gegebene|"
        r"gegebenen)",
        r"text|texts|texte|abschnitt|abschnitts|dokument|dokuments|kapitel|artikel|absatz|seite|auszug|"
        r"tabelle|abbildung|liste|beispiel|autor|autorin|studie|beitrag|kontext",
        r"laut (?:dem |diesem )?(?:text|dokument|artikel|abschnitt|autor|auszug)|im (?:text|dokument|artikel|"
        r"abschnitt|auszug)|oben (?:genannt\w*|erwähnt\w*|beschrieben\w*)|text [12]\b",
    ),
    # Not "le texte": French has the same word for "the" and for what is meant here.
    "fr": (
        r"ce|cet|cette|ces",
        r"texte|passage|document|article|extrait|paragraphe|tableau|figure|auteur|section|chapitre|page",
        r"selon (?:le |ce |l['’])(?:texte|passage|document|article|extrait|auteur)|ci-dessus|texte [12]\b",
    ),
    "es": (
        r"este|esta|estos|estas",
        r"texto|pasaje|documento|sección|capítulo|artículo|párrafo|página|extracto|tabla|figura|lista|autor|autora",
        r"según (?:el |este )(?:texto|pasaje|documento|artículo|autor)|en el (?:texto|pasaje|documento)|"
        r"mencionad\w+ (?:arriba|anteriormente)|texto [12]\b",
    ),
    "it": (
        r"quest(?:o|a|i|e)",
        r"testo|brano|documento|sezione|capitolo|articolo|paragrafo|pagina|estratto|tabella|figura|autore",
        r"secondo (?:il |questo |l['’])(?:testo|brano|documento|articolo|autore)|nel (?:testo|brano|"
        r"documento)|testo [12]\b",
    ),
    "pt": (
        r"este|esta|estes|estas|esse|essa",
        r"texto|trecho|documento|seção|capítulo|artigo|parágrafo|página|tabela|figura|lista|autor|autora",
        r"de acordo com (?:o |este )(?:texto|trecho|documento|artigo|autor)|no (?:texto|trecho|documento)|"
        r"texto [12]\b",
    ),
    "nl": (
        r"dit|deze",
        r"tekst|passage|document|sectie|hoofdstuk|artikel|alinea|pagina|fragment|tabel|figuur|lijst|auteur",
        r"volgens (?:de |deze |het |dit )(?:tekst|passage|document|artikel|auteur)|in (?:de|deze) tekst|"
        r"tekst [12]\b",
    ),
}  # fmt: skip
_PATTERNS = {
    language: re.compile(
        rf"\b(?:(?:{pointing})\s+(?:{nouns})\b|(?:{phrases}))",
        re.IGNORECASE,
    )
    for language, (pointing, nouns, phrases) in _POINTERS.items()
}
#: A subject that only the text names, at the beginning of an English question.
_PRONOUN = re.compile(
    r"(?:who|what|when|where|why|how|which)(?:\s+\w+)?\s+(?:is|was|are|were|did|does|do|has|had|can|could|"
    r"will|would|should)\s+(?:he|she|it|they|this|these|those)\b",
    re.IGNORECASE,
)
#: As file names are written in text: with an ending, or a chunk's range.
_FILE = re.compile(
    r"\b[\w./-]+\.(?:md|txt|pdf|html?|docx|epub|rst|jsonl?|csv|parquet)\b|@\d+-\d+\b", re.IGNORECASE
)
_CHUNK = re.compile(r"\b(?:chunk|document|passage|text) ?(?:#|no\.? ?|number )?\d+\b", re.IGNORECASE)
#: A shorter stem, such as `faq`, may be a word of the document's subject.
_SHORTEST_STEM = 5


def points_at_text(question: str, language: str) -> bool:
    """Return whether a question points at a text that its reader does not see.

    Args:
        question: the question.
        language: ISO 639-1 code of its language.
    """
    pattern = _PATTERNS.get(language)
    if pattern is not None and pattern.search(question):
        return True
    return language == "en" and _PRONOUN.match(question.strip()) is not None


def named_source(text: str, names: Collection[str]) -> str:
    """Return the part of a text that tells the file or the chunk that it was made of; "" if none does.

    Args:
        text: a question or an answer.
        names: ids of the document and its chunks, and the name of the file.
    """
    if found := _FILE.search(text) or _CHUNK.search(text):
        return found[0]
    folded = text.casefold()
    for name in names:
        base = PurePosixPath(name.casefold() or "-").name
        # A name with a dash or underscore is no ordinary word: `opening-hours` is how files are called.
        stem = base.rpartition(".")[0] or base
        marked = any(sign in stem for sign in "-_.@#") and len(stem) >= _SHORTEST_STEM
        if marked and stem in folded:
            return stem
        if "." in base and base in folded:
            return base
    return ""
