"""How tensors are cut into chunks. No memory is needed for that, so sizes are those of any machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedopt import _C

pytestmark = pytest.mark.one_torch

CHUNK = 16 * 1024


def check(numels: list[int], size: int) -> list[tuple[int, int, int]]:
    """Exact cover in order: every tensor from its beginning to its end, without gaps, in the fewest chunks."""
    chunks = _C.cut(numels, size)
    assert chunks == sorted(chunks)
    assert all(0 < count <= size for _, _, count in chunks)
    ends = [0] * len(numels)
    for tensor, begin, count in chunks:
        assert begin == ends[tensor]
        ends[tensor] += count
    assert ends == numels
    assert len(chunks) == sum(-(-n // size) for n in numels)
    return chunks


@pytest.mark.parametrize(
    ("numels", "expected"),
    [
        ([], []),
        ([0], []),
        ([0, 0, 0], []),
        ([1], [(0, 0, 1)]),
        ([CHUNK - 1], [(0, 0, CHUNK - 1)]),
        ([CHUNK], [(0, 0, CHUNK)]),
        ([CHUNK + 1], [(0, 0, CHUNK), (0, CHUNK, 1)]),
        ([3 * CHUNK], [(0, 0, CHUNK), (0, CHUNK, CHUNK), (0, 2 * CHUNK, CHUNK)]),
        ([0, 5, 7], [(1, 0, 5), (2, 0, 7)]),
        ([5, 0, 7], [(0, 0, 5), (2, 0, 7)]),
        ([5, 7, 0], [(0, 0, 5), (1, 0, 7)]),
        ([0, 0, CHUNK + 2, 0, 0], [(2, 0, CHUNK), (2, CHUNK, 2)]),
    ],
    ids=str,
)
def test_edges(numels: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert check(numels, CHUNK) == expected


def test_thousands_of_tensors() -> None:
    assert len(check([i % 3 for i in range(9000)], CHUNK)) == 6000


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**31 + 1, 2**33 + 5, 2**40], ids=str)
def test_more_elements_than_32_bits_count(numel: int) -> None:
    size = max(CHUNK, numel // 1000)
    assert check([1, numel, 0, 3], size)[-1] == (3, 0, 3)


def test_more_than_2_31_elements_in_chunks_of_the_real_size() -> None:
    chunks = _C.cut([2**32 + 1], CHUNK)
    assert len(chunks) == 2**18 + 1
    assert chunks[-1] == (0, 2**32, 1)


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 40))
def test_any_sizes(numels: list[int], size: int) -> None:
    check(numels, size)
