"""Two levels keep what one level of bfloat16 loses."""

import pytest

from bench.stability import GRADIENTS, measure


@pytest.mark.parametrize(("level1", "sub", "least", "most"), [
    ("bf16", GRADIENTS, 0.5, 1),
    ("bf16", 64, 0, 0.002),
    ("fp32", GRADIENTS, 0, 0.002),
])
def test_sum_of_gradients_of_one_sign(level1, sub, least, most):
    lost, _ = measure("emulator", level1, sub)
    assert least <= lost < most
