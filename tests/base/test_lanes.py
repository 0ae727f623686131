"""Arithmetic of lanes beside numpy's, at the edges of what their bits hold."""

import operator

import numba
import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cachedlrm.base.lanes import counted, load, place_of, splat

EDGES = np.array([0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF] + [5] * 6, np.uint32)


def computed(formula, numbers: np.ndarray = EDGES, results: int = 16) -> np.ndarray:
    """What a formula, a function of lanes and the builder, makes of 16 numbers of 32 bits."""

    @intrinsic
    def compute(typing_context, numbers, out):
        def generate(context, builder, signature, arguments):
            data = [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 1)]
            zero = context.get_constant(types.int64, 0)
            lanes = load(builder, place_of(builder, data[0], zero, zero, 32), 32, 16)
            formula(lanes, builder).store(place_of(builder, data[1], zero, zero, 32))
            return context.get_dummy_value()

        return types.void(numbers, out), generate

    out = np.zeros(results, np.uint32)
    run = numba.njit(lambda of, out: compute(of, out))  # noqa: PLW0108
    run(numbers, out)
    return out


OPERATORS = [operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor]


def test_operators_are_those_of_numbers_without_sign():
    def all_of_them(lanes, builder):
        total = lanes
        for apply in OPERATORS:
            total = apply(total * 3, lanes) + apply(total, 0x9E3779B9)
        return (7 - total) ^ total >> 5 ^ total << 9

    total = EDGES
    for apply in OPERATORS:
        total = apply(total * np.uint32(3), EDGES) + apply(total, np.uint32(0x9E3779B9))
    assert (computed(all_of_them) == (np.uint32(7) - total) ^ (total >> np.uint32(5)) ^ (total << np.uint32(9))).all()


@pytest.mark.parametrize("most", [0, 0x7FFF, 0x80000000, 0xFFFFFFFF])
def test_comparisons_know_no_sign(most):
    assert (computed(lambda lanes, builder: lanes.clamp(max=most)) == np.minimum(EDGES, np.uint32(most))).all()
    found = computed(lambda lanes, builder: lanes.where(lanes < most, lanes - most).masked_fill(lanes > most, 3))
    expected = np.where(np.uint32(most) > EDGES, EDGES, 0)
    assert (found == np.where(np.uint32(most) < EDGES, 3, expected)).all()


def test_sizes():
    assert (computed(lambda lanes, builder: lanes.resized(16).resized(32)) == EDGES & 0xFFFF).all()
    halves = computed(lambda lanes, builder: lanes.cut(16).resized(32), results=32)
    assert (halves == EDGES.view(np.uint16)).all()


def test_floats_are_rounded_once():
    small = np.minimum(EDGES, 0x7FFF)
    found = computed(lambda lanes, builder: lanes.clamp(max=0x7FFF).times(2.0**-24))
    assert (found.view(np.float32) == small.astype(np.float32) * np.float32(2.0**-24)).all()


def test_numbers_in_all_lanes():
    def states(lanes, builder):
        ten = splat(builder, ir.Constant(ir.IntType(64), 10), 8)
        return (ten + counted(builder, 8, 1 << 63 | 3)).cut(32)

    expected = np.array([10 + lane * (1 << 63 | 3) & (1 << 64) - 1 for lane in range(8)], np.uint64)
    assert (computed(states) == expected.view(np.uint32)).all()
