"""The one error of this room that is the user's to mend."""

_LONGEST = 1000


class InputError(ValueError):
    """Bad input, said in one line: what, where (file, row, field), what was expected, how to mend it."""

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        if len(text) > _LONGEST:  # a broken file's content may have got into it
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 3 :]}"
        super().__init__(text)
