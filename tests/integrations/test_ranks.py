"""attach in training by two processes, each with its own batch."""

import pytest
import torch

from tests.integrations import rank_loops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or torch.__version__.startswith("1."),
        reason="needs torch.distributed, and hooks that see keywords for the wrapper",
    ),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_loops.main, (str(folder),), rank_loops.RANKS)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(rank_loops.RANKS)]


@pytest.mark.parametrize("case", rank_loops.CASES)
def test_parameters_are_those_of_the_mean_of_hand_written_sums(ranks, case):
    want = rank_loops.by_hand(case)
    for found in ranks:
        if isinstance(found[case], str):
            pytest.skip(found[case])
        assert len(found[case]) == len(want)
        for got, expected in zip(found[case], want):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
