"""Find the input files of the task of questions over documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from retrieval.corpus.source_files import SourceFile, Survey, find_files, mapped_files, survey_files
from retrieval.settings.context import ContextConfig
from retrieval.settings.document_layouts import TEXT_SUFFIXES
from retrieval.settings.file_suffixes import DATASET_FILES, ROW_SUFFIXES, TABLE_SUFFIXES
from retrieval.settings.tasks import QaTask


def input_files(config: ContextConfig) -> Iterator[tuple[str, Path]]:
    """Return the documents' files, and the questions' files if they are separate, with stable labels.

    Raises:
        InputError: a source is missing.
    """
    assert config.qa is not None
    for file in document_files(config.qa):
        yield f"qa.documents/{file.name}", file.path
    # Without a source of their own the questions are in the documents' files, which are named already.
    for file in question_files(config.qa) if config.qa.questions is not None else []:
        yield f"qa.questions/{file.name}", file.path
    for file in synthetic_files(config.qa):
        yield f"qa.synthetic_questions/{file.name}", file.path


def document_files(task: QaTask) -> list[SourceFile]:
    """Return the files of a question task's documents.

    Raises:
        InputError: the source has no files.
    """
    return document_survey(task).files


def document_survey(task: QaTask) -> Survey:
    """Return the files of a question task's documents, and what was left out of their source.

    Raises:
        InputError: the source has no files.
    """
    if task.columns is None:
        return survey_files(task.source, (*ROW_SUFFIXES, *TEXT_SUFFIXES), "qa.source")
    survey = survey_files(task.source, TABLE_SUFFIXES, "qa.source", DATASET_FILES)
    return replace(survey, files=mapped_files(survey.files, task.columns, "qa.columns"))


def question_files(task: QaTask) -> list[SourceFile]:
    """Return the files of a question task's questions, without those that a model made.

    Without a separate source of questions, these are the documents' files, as in SQuAD. Beside made
    questions, only a separate source counts.

    Raises:
        InputError: the source has no files.
    """
    if task.questions is None:
        return [] if task.has_made_questions else document_files(task)
    files = find_files(task.questions, TABLE_SUFFIXES, "qa.questions", DATASET_FILES)
    if task.question_columns is None:
        return files
    return mapped_files(files, task.question_columns, "qa.question_columns")


def synthetic_files(task: QaTask) -> list[SourceFile]:
    """Return the files of made questions, if the settings name some.

    Raises:
        InputError: the source has no files.
    """
    if task.synthetic_questions is None:
        return []
    return find_files(task.synthetic_questions, (".parquet",), "qa.synthetic_questions")
