"""Compiled code of the features of pairs: a message, and each earlier message that it may answer.

A message passes over its candidates a few times, with counts by author beside it, so a candidate costs a few
dozen steps. The tests compare every feature with its definition, computed pair by pair.
"""

from __future__ import annotations

import numpy as np

from retrieval.search.compiled import compiled
from retrieval.search.learned.thread_facts import ThreadFacts

#: Features by group, in the order of the columns.
PAIR_GROUPS: dict[str, tuple[str, ...]] = {
    "distance": ("log_distance", "is_previous", "is_second", "is_opening", "log_place"),
    "time": ("log_time", "time_known", "same_minute"),
    "authors": (
        "same_author",
        "newest_of_author",
        "newest_of_own",
        "log_messages_of_author_since",
        "log_own_messages_since",
        "log_others_since",
        "first_of_author_since_own",
        "last_of_run",
        "first_of_run",
        "first_of_author",
    ),
    "mentions": (
        "named",
        "addressed",
        "newest_of_named",
        "names_me",
        "addresses_me",
        "newest_that_names_me",
        "addresses_other",
        "names_nobody",
        "addresses_the_same",
        "author_is_partner",
        "partner_of_author",
        "partner_of_author_now",
        "author_named_me_last",
        "log_addressed_since",
        "log_i_named_since",
        "log_named_me_since",
        "log_i_named_before",
        "log_named_me_before",
    ),
    "overlap": (
        "cosine",
        "cosine_rank",
        "log_shared_words",
        "rarest_shared",
        "shares_rarest_of_all",
        "newest_with_rarest",
        "first_with_rarest",
        "log_shared_runs",
        "author_cosine",
        "run_cosine",
        "own_words_cosine",
        "shared_of_message",
    ),
}
N_PAIR = sum(len(names) for names in PAIR_GROUPS.values())

# The columns as numbers, which compiled code takes for constants.
# fmt: off
(
    _LOG_DISTANCE, _IS_PREVIOUS, _IS_SECOND, _IS_OPENING, _LOG_PLACE,
    _LOG_TIME, _TIME_KNOWN, _SAME_MINUTE,
    _SAME_AUTHOR, _NEWEST_OF_AUTHOR, _NEWEST_OF_OWN, _LOG_MESSAGES_OF_AUTHOR_SINCE, _LOG_OWN_MESSAGES_SINCE,
    _LOG_OTHERS_SINCE, _FIRST_OF_AUTHOR_SINCE_OWN, _LAST_OF_RUN, _FIRST_OF_RUN, _FIRST_OF_AUTHOR,
    _NAMED, _ADDRESSED, _NEWEST_OF_NAMED, _NAMES_ME, _ADDRESSES_ME, _NEWEST_THAT_NAMES_ME, _ADDRESSES_OTHER,
    _NAMES_NOBODY, _ADDRESSES_THE_SAME, _AUTHOR_IS_PARTNER, _PARTNER_OF_AUTHOR, _PARTNER_OF_AUTHOR_NOW,
    _AUTHOR_NAMED_ME_LAST, _LOG_ADDRESSED_SINCE, _LOG_I_NAMED_SINCE, _LOG_NAMED_ME_SINCE,
    _LOG_I_NAMED_BEFORE, _LOG_NAMED_ME_BEFORE,
    _COSINE, _COSINE_RANK, _LOG_SHARED_WORDS, _RAREST_SHARED, _SHARES_RAREST_OF_ALL, _NEWEST_WITH_RAREST,
    _FIRST_WITH_RAREST, _LOG_SHARED_RUNS, _AUTHOR_COSINE, _RUN_COSINE, _OWN_WORDS_COSINE, _SHARED_OF_MESSAGE,
) = range(N_PAIR)
# fmt: on

#: What a message's candidates tell about the message itself: the columns of `fill_pairs`.
OF_CANDIDATES = ("authors", "best_cosine", "best_rarest")


@compiled
def fill_pairs(
    facts: ThreadFacts, place: np.ndarray, low: np.ndarray, pairs: np.ndarray, messages: np.ndarray
) -> None:
    """Compute the features of M messages with all their candidates.

    Args:
        facts: facts about the thread.
        place: int64[M], the messages.
        low: int64[M], the first candidate of each message. The last one is the message before it.
        pairs: float32[P, F], its first `N_PAIR` columns are filled; the pairs of the first message come
            first.
        messages: float64[M, 3], filled with `OF_CANDIDATES`: how many authors wrote them, the best cosine,
            and the largest inverse document frequency of a shared word, as a share of the thread's largest.
    """
    # Counts by author. They are zero before and after a message, because zeroing all authors of a long
    # thread for every message would be slow.
    said = np.zeros(facts.n_authors, dtype=np.int64)
    addressed = np.zeros(facts.n_authors, dtype=np.int64)
    i_named = np.zeros(facts.n_authors, dtype=np.int64)
    named_me = np.zeros(facts.n_authors, dtype=np.int64)
    # Of an author, something of the last message that set it, which is read only after it was set.
    partner_now = np.zeros(facts.n_authors, dtype=np.int64)
    best_of_author = np.zeros(facts.n_authors)
    named_now = np.full(facts.n_authors, -1, dtype=np.int64)
    at = 0
    for m in range(len(place)):
        i, first = place[m], low[m]
        mine = pairs[at : at + i - first]
        at += i - first
        for k in range(facts.named_starts[i], facts.named_starts[i + 1]):
            named_now[facts.named[k]] = m
        _form_of_window(facts, i, first, mine)
        _names_before(facts, i, first, mine, i_named, named_me)
        _clear(facts, i, first, i_named, named_me)
        newest = 0
        me, own = facts.author[i], facts.previous[i]
        for c in range(i - 1, first - 1, -1):
            you, row = facts.author[c], mine[c - first]
            is_newest = said[you] == 0
            if is_newest:
                newest += 1
                partner_now[you] = facts.partner_after[c]
            others = i - c - 1 - said[you]
            if you != me:
                others -= said[me]
            is_named = named_now[you] == m
            row[_NEWEST_OF_AUTHOR] = is_newest
            row[_NEWEST_OF_OWN] = is_newest and you == me
            row[_NEWEST_OF_NAMED] = is_newest and is_named
            row[_LOG_MESSAGES_OF_AUTHOR_SINCE] = _counted(said[you])
            row[_LOG_OWN_MESSAGES_SINCE] = _counted(said[me])
            row[_LOG_OTHERS_SINCE] = _counted(others)
            row[_FIRST_OF_AUTHOR_SINCE_OWN] = c > own and facts.previous[c] < own
            row[_NAMED] = is_named
            row[_PARTNER_OF_AUTHOR_NOW] = partner_now[you] == me
            row[_LOG_ADDRESSED_SINCE] = _counted(addressed[you])
            row[_LOG_I_NAMED_SINCE] = _counted(i_named[you])
            row[_LOG_NAMED_ME_SINCE] = _counted(named_me[you])
            row[_NAMES_ME] = _count_names(facts, c, me, i_named, named_me)
            said[you] += 1
            if facts.addressed[c] >= 0:
                addressed[facts.addressed[c]] += 1
        for c in range(first, i):
            said[facts.author[c]] = 0
            if facts.addressed[c] >= 0:
                addressed[facts.addressed[c]] = 0
        _clear(facts, i, first, i_named, named_me)
        messages[m, 0] = newest
        messages[m, 1], messages[m, 2] = _shared_words(facts, i, first, mine, best_of_author)


@compiled
def fill_leg(scores: np.ndarray, sizes: np.ndarray, pairs: np.ndarray, column: int, best: np.ndarray) -> None:
    """Compute the features of a leg: reciprocal rank, score, and score divided by the best one.

    Candidates with a score of zero or below count as not found. Of equal scores, the earlier one is first.

    Args:
        scores: float64[P], the leg's score of each pair.
        sizes: int64[M], number of candidates of each message.
        pairs: float32[P, F]; three columns are filled.
        column: the first of them.
        best: float64[M], filled with the best score.
    """
    at = 0
    for m in range(len(sizes)):
        own = scores[at : at + sizes[m]]
        top = 0.0
        for score in own:
            top = max(top, score)
        order = np.argsort(-own, kind="mergesort")
        for rank in range(len(own)):
            row, score = pairs[at + order[rank]], own[order[rank]]
            row[column] = 1 / (1 + rank) if score > 0 else 0.0
            row[column + 1] = _counted(score) if score > 0 else 0.0
            row[column + 2] = score / top if score > 0 else 0.0
        best[m] = _counted(top)
        at += sizes[m]


@compiled
def _counted(number: float) -> float:
    """Return log(1 + n) / 2 of a count, which keeps it near the size of the other features."""
    return np.log1p(float(number)) / 2


@compiled
def _count_names(facts: ThreadFacts, c: int, me: int, i_named: np.ndarray, named_me: np.ndarray) -> bool:
    """Count whom a candidate names, by the author that it concerns, and return whether it names `me`.

    Args:
        facts: facts about the thread.
        c: the candidate.
        me: author of the message.
        i_named: int64[A], for each author how often `me` named him; changed.
        named_me: int64[A], for each author how often he named `me`; changed.
    """
    you, found = facts.author[c], False
    for k in range(facts.named_starts[c], facts.named_starts[c + 1]):
        if you == me:
            i_named[facts.named[k]] += 1
        if facts.named[k] == me:
            named_me[you] += 1
            found = True
    return found


@compiled
def _clear(facts: ThreadFacts, i: int, first: int, i_named: np.ndarray, named_me: np.ndarray) -> None:
    """Set the counts of `_count_names` to zero again, for the candidates `first` to `i` - 1."""
    for c in range(first, i):
        named_me[facts.author[c]] = 0
        for k in range(facts.named_starts[c], facts.named_starts[c + 1]):
            i_named[facts.named[k]] = 0


@compiled
def _names_before(
    facts: ThreadFacts, i: int, first: int, pairs: np.ndarray, i_named: np.ndarray, named_me: np.ndarray
) -> None:
    """Fill the counts of names up to each candidate, oldest first; the counts by author are changed."""
    for c in range(first, i):
        you, row = facts.author[c], pairs[c - first]
        row[_LOG_I_NAMED_BEFORE] = _counted(i_named[you])
        row[_LOG_NAMED_ME_BEFORE] = _counted(named_me[you])
        _count_names(facts, c, facts.author[i], i_named, named_me)


@compiled
def _form_of_window(facts: ThreadFacts, i: int, first: int, pairs: np.ndarray) -> None:
    """Fill the features of a pair that need no other candidate."""
    me, partner, naming = facts.author[i], facts.partner[i], facts.last_naming[i]
    for c in range(first, i):
        you, to, row = facts.author[c], facts.addressed[c], pairs[c - first]
        gap = facts.time[i] - facts.time[c]
        timed = not np.isnan(gap)
        seconds = max(gap, 0.0) if timed else 0.0
        row[_LOG_DISTANCE] = np.log(float(i - c))
        row[_IS_PREVIOUS] = i - c == 1
        row[_IS_SECOND] = i - c == 2
        row[_IS_OPENING] = c == 0
        row[_LOG_PLACE] = _counted(c)
        row[_LOG_TIME] = np.log1p(seconds / 10) / 2
        row[_TIME_KNOWN] = timed
        row[_SAME_MINUTE] = timed and seconds < 60
        row[_SAME_AUTHOR] = me == you
        row[_LAST_OF_RUN] = c + 1 == i or facts.author[c + 1] != you
        row[_FIRST_OF_RUN] = c == 0 or facts.author[c - 1] != you
        row[_FIRST_OF_AUTHOR] = facts.previous[c] < 0
        row[_ADDRESSED] = facts.addressed[i] == you
        row[_ADDRESSES_ME] = to == me
        row[_NEWEST_THAT_NAMES_ME] = naming == c
        row[_ADDRESSES_OTHER] = to >= 0 and to != me
        row[_NAMES_NOBODY] = facts.named_starts[c] == facts.named_starts[c + 1]
        row[_ADDRESSES_THE_SAME] = to >= 0 and to == facts.addressed[i]
        row[_AUTHOR_IS_PARTNER] = partner == you
        row[_PARTNER_OF_AUTHOR] = facts.partner[c] == me
        row[_AUTHOR_NAMED_ME_LAST] = naming >= 0 and facts.author[naming] == you


@compiled
def _shared_words(
    facts: ThreadFacts, i: int, first: int, pairs: np.ndarray, best_of_author: np.ndarray
) -> tuple[float, float]:
    """Fill the features of shared words, and return the best cosine and the rarest shared word's share.

    Args:
        facts: facts about the thread.
        i: the message.
        first: its first candidate.
        pairs: float32[N, F], the features of its pairs.
        best_of_author: float64[A], overwritten for the authors of the candidates.
    """
    me, n = facts.author[i], i - first
    words, weight = facts.words, facts.word_idf
    start, end = facts.word_starts[i], facts.word_starts[i + 1]
    own_norm = facts.norm[i]
    cosine, rarest = np.zeros(n), np.zeros(n)
    own_words = _words_of(facts, me, first, i)
    own_total = 0.0
    for word in own_words:
        own_total += weight[word] ** 2
    own_total = max(own_total, 1e-12)
    best = 0.0
    for c in range(first, i):
        row, dot, number = pairs[c - first], 0.0, 0
        # Both lists of words are sorted.
        k, j = start, facts.word_starts[c]
        while k < end and j < facts.word_starts[c + 1]:
            if words[k] < words[j]:
                k += 1
            elif words[k] > words[j]:
                j += 1
            else:
                dot += weight[words[k]] ** 2
                rarest[c - first] = max(rarest[c - first], weight[words[k]])
                number += 1
                k += 1
                j += 1
        best = max(best, rarest[c - first])
        cosine[c - first] = dot / np.sqrt(max(facts.norm[c] * own_norm, 1e-12))
        own_dot = 0.0
        if facts.author[c] != me and len(own_words):
            for j in range(facts.word_starts[c], facts.word_starts[c + 1]):
                found = np.searchsorted(own_words, words[j])
                if found < len(own_words) and own_words[found] == words[j]:
                    own_dot += weight[words[j]] ** 2
        row[_COSINE] = cosine[c - first]
        row[_LOG_SHARED_WORDS] = _counted(number)
        row[_RAREST_SHARED] = rarest[c - first] / facts.largest_idf
        row[_LOG_SHARED_RUNS] = _counted(_shared_runs(facts, i, c))
        row[_OWN_WORDS_COSINE] = own_dot / np.sqrt(max(facts.norm[c] * own_total, 1e-12))
        row[_SHARED_OF_MESSAGE] = dot / max(own_norm, 1e-12)
    _best_by_author_and_run(facts, first, cosine, pairs, best_of_author)
    _rarest_of_all(rarest, best, pairs)
    # The last of equal ones first.
    order = np.argsort(-cosine[::-1], kind="mergesort")
    for rank in range(n):
        c = n - 1 - order[rank]
        pairs[c, _COSINE_RANK] = 1 / (1 + rank) if cosine[c] > 0 else 0.0
    return (cosine.max() if n else 0.0), best / facts.largest_idf


@compiled
def _words_of(facts: ThreadFacts, author: int, first: int, end: int) -> np.ndarray:
    """Return int64: the distinct words of an author's messages from `first` to `end` - 1, sorted."""
    size = 0
    for c in range(first, end):
        if facts.author[c] == author:
            size += facts.word_starts[c + 1] - facts.word_starts[c]
    found = np.empty(size, dtype=np.int64)
    size = 0
    for c in range(first, end):
        if facts.author[c] == author:
            for k in range(facts.word_starts[c], facts.word_starts[c + 1]):
                found[size] = facts.words[k]
                size += 1
    found.sort()
    kept = 0
    for k in range(size):
        if k == 0 or found[k] != found[k - 1]:
            found[kept] = found[k]
            kept += 1
    return found[:kept]


@compiled
def _shared_runs(facts: ThreadFacts, i: int, c: int) -> int:
    """Return how many pairs of neighbouring words two messages share."""
    # Both lists are sorted.
    runs, k, j, found = facts.runs, facts.run_starts[i], facts.run_starts[c], 0
    while k < facts.run_starts[i + 1] and j < facts.run_starts[c + 1]:
        if runs[k] < runs[j]:
            k += 1
        elif runs[k] > runs[j]:
            j += 1
        else:
            found, k, j = found + 1, k + 1, j + 1
    return found


@compiled
def _best_by_author_and_run(
    facts: ThreadFacts, first: int, cosine: np.ndarray, pairs: np.ndarray, best_of_author: np.ndarray
) -> None:
    """Fill the best cosine among the messages of an author, and among those of an uninterrupted run."""
    n = len(cosine)
    for c in range(n):
        best_of_author[facts.author[first + c]] = 0.0
    begin, best = 0, 0.0
    for c in range(n):
        you = facts.author[first + c]
        best_of_author[you] = max(best_of_author[you], cosine[c])
        best = max(best, cosine[c])
        if c + 1 == n or facts.author[first + c + 1] != you:
            pairs[begin : c + 1, _RUN_COSINE] = best
            begin, best = c + 1, 0.0
    for c in range(n):
        pairs[c, _AUTHOR_COSINE] = best_of_author[facts.author[first + c]]


@compiled
def _rarest_of_all(rarest: np.ndarray, best: float, pairs: np.ndarray) -> None:
    """Mark the candidates that share the rarest word of all, and the newest and the first of them."""
    first = last = -1
    for c in range(len(rarest)):
        top = best > 0 and rarest[c] == best
        pairs[c, _SHARES_RAREST_OF_ALL] = top
        pairs[c, _NEWEST_WITH_RAREST] = 0
        pairs[c, _FIRST_WITH_RAREST] = 0
        if top:
            last = c
            if first < 0:
                first = c
    if last >= 0:
        pairs[last, _NEWEST_WITH_RAREST] = 1
        pairs[first, _FIRST_WITH_RAREST] = 1
