"""Rows that wait for banks: who comes first, and what the others still get."""

import pytest

from gradmill.banks import Access, Banks, Passage
from gradmill_hw.isa import Queue

READ, WRITE = Access.ACC_READ(2), Access.ACC_WRITE(2)


def product(begin, end, **shares):
    names = {"read": READ, "write": WRITE}
    return Passage.of_product(begin, end, {names[name]: share for name, share in shares.items()}, 0)


def vector(begin, rows, *needs, **options):
    return Passage(Queue.VECTOR, begin, rows, dict.fromkeys(needs, 1), **options)


def test_ways_into_the_memories_are_different():
    ways = {access(bank) for access in Access for bank in range(8)}
    assert len(ways) == 8 * len(Access)


@pytest.mark.parametrize(("needs", "pace", "cycles"), [
    ({READ: 1}, 1, 40), ({READ: 2}, 1, 80), ({READ: 1}, 1 / 4, 160), ({}, 1, 40)])
def test_rows_on_their_own(needs, pace, cycles):
    passage = Banks().add(Passage(Queue.VECTOR, 100, 40, needs, pace=pace, after=7))
    assert passage.passed == 100 + cycles
    assert passage.end == 100 + cycles + 7


@pytest.mark.parametrize(("shares", "end", "passed"), [
    ({"read": 0.5}, 200, 160), ({"read": 0.5}, 80, 120), ({"read": 1.0}, 80, 160),
    ({"read": 0.75}, 400, 320), ({"write": 1.0}, 80, 80)])
def test_a_product_leaves_a_share_of_the_cycles(shares, end, passed):
    """To 80 rows, until it ends."""
    banks = Banks()
    banks.add(product(0, end, **shares))
    assert banks.add(vector(0, 80, READ)).passed == passed


def test_products_that_begin_later_put_off_what_is_on_its_way():
    """And those behind it, which have been placed, too."""
    banks = Banks()
    first, second = banks.add(vector(0, 50, READ)), banks.add(vector(50, 50, READ))
    other = banks.add(Passage(Queue.STORE, 0, 20, {WRITE: 1}))
    assert (first.passed, second.passed, banks.delays) == (50, 100, 0)
    banks.add(product(30, 60, read=1.0))
    assert (first.passed, second.passed, other.passed) == (80, 130, 20)
    assert banks.delays == 2
    banks.add(product(200, 300, read=1.0))
    assert banks.delays == 2, "all have passed"


def test_stores_come_after_the_vector_unit_which_does_not_wait_for_them():
    banks = Banks()
    store = banks.add(Passage(Queue.STORE, 0, 50, {READ: 1}))
    assert store.passed == 50
    late = banks.add(vector(20, 40, READ))
    assert (late.passed, store.passed) == (60, 90)
    banks.add(product(20, 40, read=1.0))
    assert (late.passed, store.passed) == (80, 110)


def test_what_is_not_known_does_not_count():
    banks = Banks(others=False)
    banks.add(product(0, 100, read=1.0))
    assert banks.add(Passage(Queue.STORE, 0, 50, {READ: 1})).passed == 50
    assert banks.add(vector(0, 50, READ)).passed == 150


def test_an_estimate_leaves_no_trace():
    banks = Banks()
    banks.estimate(vector(0, 1000, READ))
    assert banks.add(Passage(Queue.STORE, 0, 50, {READ: 1})).passed == 50
