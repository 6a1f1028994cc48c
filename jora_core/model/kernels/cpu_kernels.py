"""Attention of packed rows and shared contexts on a CPU, compiled by numba and called by XLA.

XLA's own loops leave much of a CPU unused: it computes products of small blocks at half the rate of a BLAS,
on one core, and copies blocks between them. These kernels multiply blocks with the SGEMM of scipy's BLAS, in
place, and need no other memory than a few blocks. They follow FlashAttention (arXiv:2205.14135, 2307.08691),
as `jora_core.model.blockwise_attention` does, which is the reference of their tests.

XLA calls a kernel with the address of a call frame, whose layout is that of `xla/ffi/api/c_api.h`. The work
of a call is divided into units, one for each row and head. The threads of XLA's pool and the caller take
units in turn until none is left. What a unit computes does not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import llvmlite.binding
import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401 - its functions are looked up by name
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic
from threadpoolctl import threadpool_limits

from jora_core.model.attention_slots import MASKED

FORWARD, BACKWARD = "jora_attention_forward", "jora_attention_backward"

# By name, and not by address: an address in the code would make it useless to other processes.
_SGEMM, _TASK = "jora_sgemm", "jora_attention_task"
llvmlite.binding.add_symbol(_SGEMM, get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))

# Sums may be reordered, so that they use vectors. NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_NO, _YES = np.int32(ord("N")), np.int32(ord("T"))
_ZERO, _ONE, _MASKED = np.float32(0), np.float32(1), np.float32(MASKED)
# Adjacent blocks of keys are computed together, up to this many slots: wide products are faster.
_WIDEST = 512
_LANES = 64

# Offsets in bytes. Call frame: its extension, XLA's functions, its context, and the lists of arguments and
# results, each an array of pointers. Buffer: its data and its shape. Functions: to schedule a task, and to
# ask for the number of threads.
_EXTENSION, _FUNCTIONS, _CONTEXT, _ARGUMENTS, _RESULTS = 8, 16, 24, 40 + 32, 80 + 32
_DATA, _SHAPE = 24, 40
_SCHEDULE, _THREADS = 136, 144
# The extension that asks for the version of the interface: its type, its metadata, and the version in these.
_TYPE, _METADATA, _MAJOR, _MINOR = 8, 24, 24, 28
_METADATA_TYPE = 1
_VERSION = (0, 3)

_array: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
_compiled: Any = numba.njit(error_model="numpy", nogil=True, fastmath=_FASTMATH)
_instruction: Any = intrinsic


@_instruction
def _sgemm(typing, transposed, sizes, factors, inputs, output):  # noqa: ANN001, ANN202
    """Call BLAS: C = alpha op(A) op(B) + beta C, stored by columns.

    Args:
        typing: numba's.
        transposed: whether A and B are, as BLAS spells it.
        sizes: rows and columns of C, and terms of a sum.
        factors: alpha and beta.
        inputs: address of A, and numbers from one of its columns to the next; the same of B.
        output: the same of C.
    """
    number, matrix = types.int32, (types.uintp, types.int32)
    signature = types.void(
        types.UniTuple(number, 2),
        types.UniTuple(number, 3),
        types.UniTuple(types.float32, 2),
        types.Tuple((*matrix, *matrix)),
        types.Tuple(matrix),
    )

    def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
        byte = ir.IntType(8)
        pointer = byte.as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer] * 13), _SGEMM
        )

        def reference(value: Any) -> Any:
            # Fortran takes every number by its address.
            place = cgutils.alloca_once(builder, value.type)
            builder.store(value, place)
            return builder.bitcast(place, pointer)

        transposed, sizes, factors, inputs, output = (cgutils.unpack_tuple(builder, part) for part in given)
        a, a_step, b, b_step, c, c_step = (*inputs, *output)
        passed = [
            *(reference(builder.trunc(letter, byte)) for letter in transposed),
            *map(reference, sizes),
            *(reference(factors[0]), builder.inttoptr(a, pointer), reference(a_step)),
            *(builder.inttoptr(b, pointer), reference(b_step)),
            *(reference(factors[1]), builder.inttoptr(c, pointer), reference(c_step)),
        ]
        builder.call(function, passed)
        return context.get_dummy_value()

    return signature, generate


@_instruction
def _pointer(typing, address):  # noqa: ANN001, ANN202
    def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(types.uintp), generate


@_instruction
def _add(typing, state, place, change):  # noqa: ANN001, ANN202
    """Add to a number of 8 bytes in one step that no other thread interrupts; return the number before."""

    def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
        state, place, change = given
        words = builder.inttoptr(state, ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", builder.gep(words, [place]), change, "seq_cst")

    return types.int64(types.uintp, types.int64, types.int64), generate


@_instruction
def _call(typing, function, order):  # noqa: ANN001, ANN202
    """Call one of XLA's functions, given by its address, with the address of its order."""

    def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
        word = ir.IntType(64)
        return builder.call(
            builder.inttoptr(given[0], ir.FunctionType(word, [word]).as_pointer()), [given[1]]
        )

    return types.uintp(types.uintp, types.uintp), generate


@_instruction
def _task_address(typing):  # noqa: ANN001, ANN202
    def generate(context: Any, builder: Any, _: Any, given: Any) -> Any:
        word = ir.IntType(64)
        task = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, [word]), _TASK)
        return builder.ptrtoint(task, word)

    return types.uintp(), generate


_malloc = types.ExternalFunction("malloc", types.uintp(types.uintp))
_free = types.ExternalFunction("free", types.void(types.uintp))
_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@_compiled
def _word(address):  # noqa: ANN001, ANN202
    """Read 8 bytes."""
    return _array(_pointer(address), 1, np.uint64)[0]


@_compiled
def _shape(buffer, axis):  # noqa: ANN001, ANN202
    return np.int64(_word(_word(buffer + np.uint64(_SHAPE)) + np.uint64(8 * axis)))


@_compiled
def _numbers(frame, place, type):  # noqa: ANN001, ANN202
    """Return an argument with one axis."""
    buffer = _word(_word(frame + np.uint64(_ARGUMENTS)) + np.uint64(8 * place))
    return _array(_pointer(_word(buffer + np.uint64(_DATA))), _shape(buffer, 0), type)


@_compiled
def _bounds(frame, place):  # noqa: ANN001, ANN202
    """Return an argument int32 with two axes."""
    buffer = _word(_word(frame + np.uint64(_ARGUMENTS)) + np.uint64(8 * place))
    shape = (_shape(buffer, 0), _shape(buffer, 1))
    return _array(_pointer(_word(buffer + np.uint64(_DATA))), shape, np.int32)


@_compiled
def _heads(frame, list, place):  # noqa: ANN001, ANN202
    """Return an argument or a result float32 with four axes."""
    buffer = _word(_word(frame + np.uint64(list)) + np.uint64(8 * place))
    shape = (_shape(buffer, 0), _shape(buffer, 1), _shape(buffer, 2), _shape(buffer, 3))
    return _array(_pointer(_word(buffer + np.uint64(_DATA))), shape, np.float32)


@_compiled
def _address(x, a, b, c):  # noqa: ANN001, ANN202
    """Return the address of x[a, b, c, 0] in an array without gaps."""
    place = ((a * x.shape[1] + b) * x.shape[2] + c) * x.shape[3]
    return np.uint64(x.ctypes.data) + np.uint64(4 * place)


@_compiled
def _exponentials(scores, shifts, rows, columns, powers):  # noqa: ANN001, ANN202
    """Replace scores[:rows, :columns] by exp(score - shift of the row), for differences of at most 0.

    The polynomial of Cephes' expf: 2^n times a polynomial of the rest. In two loops, because a conversion
    between types in one loop would keep it from using vectors. Far below 0 the power is exactly 0: numbers
    that are nearly 0 would make later products slow.
    """
    exponents = powers.view(np.int32)
    for a in range(rows):
        shift = shifts[a]
        for c in range(columns):
            x = max(scores[a, c] - shift, np.float32(-88.0))
            n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
            r = x - n * np.float32(0.693359375)
            r = r - n * np.float32(-2.12194440e-4)
            p = np.float32(1.9875691500e-4)
            p = p * r + np.float32(1.3981999507e-3)
            p = p * r + np.float32(8.3334519073e-3)
            p = p * r + np.float32(4.1665795894e-2)
            p = p * r + np.float32(1.6666665459e-1)
            p = p * r + np.float32(5.0000001201e-1)
            scores[a, c] = p * (r * r) + r + _ONE
            exponents[c] = (np.int32(n) + np.int32(127)) << np.int32(23)
        for c in range(columns):
            scores[a, c] *= powers[c]


@_compiled
def _block_bounds(until, positions, block):  # noqa: ANN001, ANN202
    """Return the least and greatest bound and position of each block of keys, int32 [blocks, 4]."""
    count = (len(until) + block - 1) // block
    found = np.empty((count, 4), np.int32)
    for j in range(count):
        low, high = j * block, min(j * block + block, len(until))
        found[j, 0], found[j, 1] = until[low:high].min(), until[low:high].max()
        found[j, 2], found[j, 3] = positions[low:high].min(), positions[low:high].max()
    return found


@_compiled
def _visible(queries, query_positions, keys, block, limit, kinds):  # noqa: ANN001, ANN202
    """Write, for each block of keys, whether none (0), some (1) or all (2) pairs with queries are allowed.

    Only least and greatest values are compared, so a block without an allowed pair may count as some.
    """
    first, last = queries.min(), queries.max()
    low, high = query_positions.min(), query_positions.max()
    for j in range(len(keys)):
        start = j * block
        if start > last or keys[j, 1] <= first or low - keys[j, 3] >= limit:
            kinds[j] = 0
        elif start + block - 1 <= first and keys[j, 0] > last and high - keys[j, 2] < limit:
            kinds[j] = 2
        else:
            kinds[j] = 1


@_compiled
def _mask(scores, queries, keys, start, limit):  # noqa: ANN001, ANN202
    """Mask the scores of keys that the queries may not attend to.

    Args:
        scores: float32 [queries, keys].
        queries: slots and positions of the queries.
        keys: bounds and positions of the keys.
        start: slot of the first key.
        limit: limit of the distance.
    """
    slots, query_positions = queries
    until, positions = keys
    for a in range(len(slots)):
        row, query, nearest = scores[a], slots[a], query_positions[a] - limit
        for c in range(len(until)):
            row[c] = row[c] if (query < until[c]) & (positions[c] > nearest) else _MASKED
        for c in range(max(0, query + 1 - start), len(until)):
            row[c] = _MASKED


@_compiled
def _maximum(row, columns, least, lanes):  # noqa: ANN001, ANN202
    """Return the maximum of row[:columns] and `least`.

    Many maxima side by side are kept in `lanes`, a power of two of them: a loop with a single one would not
    use vectors.
    """
    size = len(lanes)
    lanes[:] = least
    whole = columns - columns % size
    for start in range(0, whole, size):
        for lane in range(size):
            lanes[lane] = max(lanes[lane], row[start + lane])
    for c in range(whole, columns):
        lanes[c - whole] = max(lanes[c - whole], row[c])
    while size > 1:
        size //= 2
        for lane in range(size):
            lanes[lane] = max(lanes[lane], lanes[lane + size])
    return lanes[0]


@_compiled
def _scores(q, k, places, strides, scale, scores):  # noqa: ANN001, ANN202
    """Compute scores [rows, columns] = scale q kᵀ; places are rows, columns, and the width of a head."""
    rows, columns, width = places
    _sgemm(
        (_YES, _NO),
        (columns, rows, width),
        (scale, _ZERO),
        (k, strides[1], q, strides[0]),
        (np.uint64(scores.ctypes.data), np.int32(scores.shape[1])),
    )


@_compiled
def _run_end(kinds, j, block):  # noqa: ANN001, ANN202
    """Return the end of the run of needed blocks from j on, of at most `_WIDEST` slots."""
    end = j + 1
    while end < len(kinds) and kinds[end] > 0 and (end + 1 - j) * block <= _WIDEST:
        end += 1
    return end


@_compiled
def _masked_scores(heads, at, mask, scale, scores, run):  # noqa: ANN001, ANN202
    """Compute the masked scores of a block of queries and a run of blocks of keys.

    Args:
        heads: q and k, arrays [B, T, heads, H].
        at: row, first query, number of queries, head, and key/value head.
        mask: slots and positions of the queries, bounds and positions of the row's slots, kinds of the blocks
            of keys, and limit of the distance.
        scale: factor of the scores.
        scores: receives the scores.
        run: first and last block, slots of a block, and number of keys.
    """
    q, k = heads
    b, i, rows, n, g = at
    queries, query_positions, until, positions, kinds, limit = mask
    j, end, block, columns = run
    strides = np.int32(q.shape[2] * q.shape[3]), np.int32(k.shape[2] * k.shape[3])
    places = np.int32(rows), np.int32(columns), np.int32(q.shape[3])
    _scores(_address(q, b, i, n), _address(k, b, j * block, g), places, strides, scale, scores)
    for part in range(j, end):
        if kinds[part] == 1:
            start = part * block
            keys = slice(start, min(start + block, len(until)))
            of_part = scores[:, start - j * block :]
            _mask(of_part, (queries, query_positions), (until[keys], positions[keys]), start, limit)


@_compiled
def _forward(heads, masks, settings, results, unit):  # noqa: ANN001, ANN202
    """Compute the output and the log-sum-exp of the scores for one row and head."""
    q, k, v = heads
    block, scale = settings
    out, log_total = results
    at, at_positions, until, positions, limit = masks
    length, width = k.shape[1], k.shape[3]
    b, n = unit // q.shape[2], unit % q.shape[2]
    g = n // (q.shape[2] // k.shape[2])
    widest = max(_WIDEST, block)
    scores, powers = np.empty((block, widest), np.float32), np.empty(widest, np.float32)
    top, total, fade = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    lanes = np.empty(_LANES, np.float32)
    keys = _block_bounds(until[b], positions[b], block)
    kinds = np.empty(len(keys), np.int8)
    for i in range(0, at.shape[1], block):
        rows = min(block, at.shape[1] - i)
        queries, query_positions = at[b, i : i + rows], at_positions[b, i : i + rows]
        _visible(queries, query_positions, keys, block, limit, kinds)
        mask = (queries, query_positions, until[b], positions[b], kinds, limit)
        top[:], total[:] = _MASKED, _ZERO
        out[b, i : i + rows, n] = _ZERO
        j = 0
        while j < len(kinds):
            if kinds[j] == 0:
                j += 1
                continue
            end = _run_end(kinds, j, block)
            columns = min(end * block, length) - j * block
            _masked_scores((q, k), (b, i, rows, n, g), mask, scale, scores, (j, end, block, columns))
            for a in range(rows):
                new = _maximum(scores[a], columns, top[a], lanes)
                fade[a], top[a] = math.exp(top[a] - new), new
            _exponentials(scores, top, rows, columns, powers)
            for a in range(rows):
                new = _ZERO
                for c in range(columns):
                    new += scores[a, c]
                total[a] = total[a] * fade[a] + new
                for h in range(width):
                    out[b, i + a, n, h] *= fade[a]
            _sgemm(
                (_NO, _NO),
                (np.int32(width), np.int32(rows), np.int32(columns)),
                (_ONE, _ONE),
                (
                    _address(v, b, j * block, g),
                    np.int32(v.shape[2] * width),
                    np.uint64(scores.ctypes.data),
                    np.int32(widest),
                ),
                (_address(out, b, i, n), np.int32(q.shape[2] * width)),
            )
            j = end
        for a in range(rows):
            # A query in padding sees no key; the division must stay finite.
            of_query = max(total[a], np.float32(1e-30))
            for h in range(width):
                out[b, i + a, n, h] /= of_query
            log_total[b, n, i + a, 0] = top[a] + math.log(of_query)


@_compiled
def _backward(heads, masks, settings, saved, grads, unit):  # noqa: ANN001, ANN202
    """Compute the gradients of q, k and v for one row and key/value head."""
    q, k, v = heads
    block, scale = settings
    until, positions, limit = masks
    out, log_total, grad = saved
    d_q, d_k, d_v = grads
    length, width = k.shape[1], k.shape[3]
    group = q.shape[2] // k.shape[2]
    b, g = unit // k.shape[2], unit % k.shape[2]
    widest = max(_WIDEST, block)
    weights, d_scores = np.empty((block, widest), np.float32), np.empty((block, widest), np.float32)
    powers, inner = np.empty(widest, np.float32), np.empty(block, np.float32)
    shifts, slots = np.empty(block, np.float32), np.empty(block, np.int32)
    of_head, of_widest = np.int32(width), np.int32(widest)
    of_query, of_key = np.int32(q.shape[2] * width), np.int32(k.shape[2] * width)
    changes, shares = np.uint64(d_scores.ctypes.data), np.uint64(weights.ctypes.data)
    keys = _block_bounds(until[b], positions[b], block)
    kinds = np.empty(len(keys), np.int8)
    d_q[b, :, g * group : (g + 1) * group] = _ZERO
    d_k[b, :, g], d_v[b, :, g] = _ZERO, _ZERO
    for i in range(0, length, block):
        rows = min(block, length - i)
        for a in range(rows):
            slots[a] = i + a
        queries, query_positions = slots[:rows], positions[b, i : i + rows]
        _visible(queries, query_positions, keys, block, limit, kinds)
        mask = (queries, query_positions, until[b], positions[b], kinds, limit)
        for n in range(g * group, (g + 1) * group):
            for a in range(rows):
                new = _ZERO
                for h in range(width):
                    new += out[b, i + a, n, h] * grad[b, i + a, n, h]
                inner[a], shifts[a] = new, log_total[b, n, i + a, 0]
            of_grad = _address(grad, b, i, n)
            j = 0
            while j < len(kinds):
                if kinds[j] == 0:
                    j += 1
                    continue
                end, start = _run_end(kinds, j, block), j * block
                columns = min(end * block, length) - start
                _masked_scores((q, k), (b, i, rows, n, g), mask, scale, weights, (j, end, block, columns))
                _exponentials(weights, shifts, rows, columns, powers)
                places = np.int32(rows), np.int32(columns), of_head
                _scores(of_grad, _address(v, b, start, g), places, (of_query, of_key), _ONE, d_scores)
                for a in range(rows):
                    for c in range(columns):
                        d_scores[a, c] = weights[a, c] * (d_scores[a, c] - inner[a])
                _sgemm(
                    (_NO, _NO),
                    (of_head, np.int32(rows), np.int32(columns)),
                    (scale, _ONE),
                    (_address(k, b, start, g), of_key, changes, of_widest),
                    (_address(d_q, b, i, n), of_query),
                )
                _sgemm(
                    (_NO, _YES),
                    (of_head, np.int32(columns), np.int32(rows)),
                    (scale, _ONE),
                    (_address(q, b, i, n), of_query, changes, of_widest),
                    (_address(d_k, b, start, g), of_key),
                )
                _sgemm(
                    (_NO, _YES),
                    (of_head, np.int32(columns), np.int32(rows)),
                    (_ONE, _ONE),
                    (of_grad, of_query, shares, of_widest),
                    (_address(d_v, b, start, g), of_key),
                )
                j = end


@_compiled
def _answers_metadata(frame):  # noqa: ANN001, ANN202
    """Write the version of the interface if that is what XLA asks for, and return whether it does."""
    extension = _word(frame + np.uint64(_EXTENSION))
    if extension == 0 or np.int32(_word(extension + np.uint64(_TYPE))) != _METADATA_TYPE:
        return False
    metadata = _word(extension + np.uint64(_METADATA))
    version = _array(_pointer(metadata + np.uint64(_MAJOR)), 2, np.int32)
    version[0], version[1] = _VERSION
    return True


@_compiled
def _compute(frame, backward, unit):  # noqa: ANN001, ANN202
    """Compute one unit of a call."""
    heads = _heads(frame, _ARGUMENTS, 0), _heads(frame, _ARGUMENTS, 1), _heads(frame, _ARGUMENTS, 2)
    until, positions, limit = _bounds(frame, 3), _bounds(frame, 4), _numbers(frame, 5, np.int32)[0]
    settings = _numbers(frame, 6, np.int32)[0], _numbers(frame, 7, np.float32)[0]
    if backward:
        saved = _heads(frame, _ARGUMENTS, 8), _heads(frame, _ARGUMENTS, 9), _heads(frame, _ARGUMENTS, 10)
        grads = _heads(frame, _RESULTS, 0), _heads(frame, _RESULTS, 1), _heads(frame, _RESULTS, 2)
        _backward(heads, (until, positions, limit), settings, saved, grads, unit)
    else:
        masks = _bounds(frame, 8), _bounds(frame, 9), until, positions, limit
        results = _heads(frame, _RESULTS, 0), _heads(frame, _RESULTS, 1)
        _forward(heads, masks, settings, results, unit)


# The state of a call, 8 bytes each: the next unit, the number of units, the finished ones, the threads that
# still hold the state, the call frame, and whether the gradients are computed.
_NEXT, _UNITS, _FINISHED, _HOLDERS, _FRAME, _IS_BACKWARD, _STATE_WORDS = range(7)


def _work(state):  # noqa: ANN001, ANN202
    """Compute units of a call until none is left; free the state if no other thread holds it.

    It returns a number, since it is called as XLA's functions are.
    """
    words = _array(_pointer(state), _STATE_WORDS, np.int64)
    # The frame may be gone once all units are finished: it is read for a unit only.
    while True:
        unit = _add(state, _NEXT, 1)
        if unit >= words[_UNITS]:
            break
        _compute(np.uint64(words[_FRAME]), words[_IS_BACKWARD] == 1, unit)
        _add(state, _FINISHED, 1)
    _release(state)
    return np.uint64(0)


@_compiled
def _release(state):  # noqa: ANN001, ANN202
    if _add(state, _HOLDERS, -1) == 1:
        _free(state)


@_compiled
def _run(frame, backward):  # noqa: ANN001, ANN202
    """Compute all units of a call with the threads of XLA's pool and this one."""
    if _answers_metadata(frame):
        return np.uint64(0)
    # Heads of q, or of k: the gradients of k and v are sums over the query heads that share them.
    buffer = _word(_word(frame + np.uint64(_ARGUMENTS)) + np.uint64(8 if backward else 0))
    units = _shape(buffer, 0) * _shape(buffer, 2)
    functions, context = _word(frame + np.uint64(_FUNCTIONS)), _word(frame + np.uint64(_CONTEXT))
    threads, order = np.ones(1, np.int64), np.zeros(5, np.uint64)
    order[0], order[2], order[3] = 32, context, np.uint64(threads.ctypes.data)
    _call(_word(functions + np.uint64(_THREADS)), np.uint64(order.ctypes.data))
    helpers = max(min(threads[0], units) - 1, 0)
    state = _malloc(np.uint64(8 * _STATE_WORDS))
    words = _array(_pointer(state), _STATE_WORDS, np.int64)
    words[_NEXT], words[_UNITS], words[_FINISHED], words[_HOLDERS] = 0, units, 0, helpers + 2
    words[_FRAME], words[_IS_BACKWARD] = np.int64(frame), np.int64(backward)
    order[0], order[3], order[4] = 40, _task_address(), state
    for _ in range(helpers):
        _call(_word(functions + np.uint64(_SCHEDULE)), np.uint64(order.ctypes.data))
    _call(_task_address(), state)
    # Other threads are at their last unit. A helper that comes later finds none left.
    while _add(state, _FINISHED, 0) < units:
        _sched_yield()
    _release(state)
    return np.uint64(0)


def _forward_call(frame):  # noqa: ANN001, ANN202
    return _run(frame, False)


def _backward_call(frame):  # noqa: ANN001, ANN202
    return _run(frame, True)


def _callback(function: Callable[..., Any]) -> int:
    """Compile a function of one address that C code can call, and return the function's own address."""
    signature = types.uintp(types.uintp)
    try:
        # Later processes load the machine code instead of compiling for seconds.
        compiled = numba.cfunc(signature, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache folder can it be written
        compiled = numba.cfunc(signature, error_model="numpy")(function)
    _kept.append(compiled)
    address: Any = compiled.address
    return address


@functools.cache
def usable() -> bool:
    """Compile the kernels and tell XLA of them; say so and return False where that fails."""
    # A unit is one thread's work; the threads of XLA's pool run side by side.
    threadpool_limits(1, user_api="blas")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    try:
        # First the task, whose name the other two call.
        llvmlite.binding.add_symbol(_TASK, _callback(_work))
        for name, function in ((FORWARD, _forward_call), (BACKWARD, _backward_call)):
            jax.ffi.register_ffi_target(name, capsule(_callback(function), None, None), platform="cpu")
    except Exception as err:
        reason = str(err).splitlines()[0]
        warnings.warn(
            f"attention is slower than it could be: its kernels cannot be used ({reason})", stacklevel=2
        )
        return False
    return True


# Machine code lives as long as the object that holds it.
_kept: list[Any] = []
