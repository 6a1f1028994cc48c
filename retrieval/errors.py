"""The one error of this room that is the user's to mend."""


class InputError(ValueError):
    """Bad input, said in one line: what, where (file, row, field), what was expected, how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
