"""Streaming of an answer's text in whole characters, up to the first stop string.

A character may take several tokens, and a stop string may begin in one token and end in a later one. A piece
of text is returned as soon as no later token can change or remove it. All pieces together are the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jora_core.data.tokenizer import TextTokenizer


class TextStream:
    """Text stream of one answer, which ends before the first stop string.

    `stopped` is True after a stop string. Of several stop strings, the one that is complete first ends the
    answer. So the text does not depend on the division into tokens.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.tokens = 0
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._step = tokenizer.stream(())
        self._ids: list[int] = []
        self._pending: list[int] = []
        self._decoded = ""

    def add(self, tokens: Iterable[int]) -> str:
        """Add tokens and return the text that no later token can change.

        Tokens after a stop string are ignored.
        """
        before = len(self.text)
        for token in tokens:
            if self.stopped:
                break
            self.tokens += 1
            self._take(self._decode(int(token)))
        return self.text[before:]

    def finish(self) -> str:
        """Return the rest of the text after the last token, incomplete characters included."""
        before = len(self.text)
        if not self.stopped:
            whole = self._tokenizer.decode(self._ids)
            # Bytes that are not UTF-8 may decode differently one by one than all at once. Text that was
            # returned before is then kept.
            same = whole.startswith(self._decoded)
            self._take(whole[len(self._decoded) :] if same else self._tokenizer.decode(self._pending))
            if not self.stopped:
                self.text = self._decoded
        return self.text[before:]

    def _decode(self, token: int) -> str:
        self._ids.append(token)
        self._pending.append(token)
        try:
            piece = self._step(token)
        except Exception:  # tokenizers raises bare Exception for bytes that are no UTF-8
            piece = self._tokenizer.decode(self._pending)
            self._step = self._tokenizer.stream((token,))
        if piece:
            self._pending.clear()
        return piece or ""

    def _take(self, piece: str) -> None:
        self._decoded += piece
        # Text that was returned before contains no beginning of a stop string, so only the rest is searched.
        fresh = self._decoded[len(self.text) :]
        found = [(at + len(stop), at) for stop in self._stop if (at := fresh.find(stop)) >= 0]
        if found:
            self.stopped = True
            safe = min(found)[1]
        else:
            safe = len(fresh) - max((_partial_stop(fresh, stop) for stop in self._stop), default=0)
        self.text += fresh[:safe]


def _partial_stop(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
