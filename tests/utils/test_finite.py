"""Finite numbers are told from others, whatever their sum."""

import math

import pytest
import torch

from proxyfda.utils.finite import all_finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_value_among_many(bad, dtype):
    values = torch.ones(100, 100, dtype=dtype)
    assert all_finite(values)
    values[70, 30] = bad
    assert not all_finite(values)


def test_infinities_that_cancel():
    assert not all_finite(torch.tensor([math.inf, -math.inf, 1.0]))


def test_large_values_whose_sum_is_not_finite():
    values = torch.full((4,), 3e38)
    assert values.sum().isinf() and all_finite(values)


@pytest.mark.parametrize("values", [torch.ones(0), torch.tensor(2.0), torch.arange(3)])
def test_whatever_a_state_dict_may_hold(values):
    assert all_finite(values)
