"""The model of transfers against loops written from the instruction's description."""

import numpy as np
import pytest
from gradmill_hw.config import NANO, TILE
from gradmill_hw.link.link_model import LinkFault, receive, send
from gradmill_hw.regs import Error
from tb.link_cases import TAG, new_tile, op_of, random_receive, random_send


def memories(tile):
    return tile.mantissa, tile.exponent, tile.mask


def walk(config, fields):
    """(tensor row, mask row or None) of each row."""
    for block in range(fields["blocks"]):
        for row in range((fields["rows"] + config.n - 1) // config.n * config.n):
            masked = fields["masked"] and row < fields["rows"]
            yield (
                (fields["op0"] + block * fields["t_stride"] + row) & 0xFFFF,
                (fields["op4"] + block * fields["k_stride"] + row) & 0xFFFF if masked else None,
            )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("config", [NANO, TILE], ids=lambda config: config.name)
def test_rows_arrive(config, seed):
    print(f"{seed=}")
    rng = np.random.default_rng(seed)
    near, far, expected = (new_tile(config, np.random.default_rng(seed + k)) for k in (0, 1, 1))
    sent = random_send(config, rng)
    received = random_receive(config, rng, sent)
    transfer = send(sent, op_of(sent), *memories(near), config)
    count = receive(received, op_of(received), transfer, *memories(far), config)

    places = list(zip(walk(config, sent), walk(config, received), strict=True))
    assert count == len(places)
    for (tensor_from, mask_from), (tensor_to, mask_to) in places:
        expected.mantissa[tensor_to] = near.mantissa[tensor_from]
        expected.exponent[tensor_to] = near.exponent[tensor_from]
        if mask_to is not None:
            expected.mask[mask_to] = near.mask[mask_from]
    for got, want in zip(memories(far), memories(expected), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("name", TAG)
def test_other_tag(name):
    rng = np.random.default_rng(3)
    tile, before = (
        new_tile(NANO, np.random.default_rng(4)),
        new_tile(NANO, np.random.default_rng(4)),
    )
    sent = random_send(NANO, rng)
    transfer = send(sent, op_of(sent), *memories(tile), NANO)
    wrong = sent | {name: sent[name] ^ 1}
    with pytest.raises(LinkFault, match=name) as fault:
        receive(wrong, op_of(wrong), transfer, *memories(tile), NANO)
    assert (fault.value.error, fault.value.rows) == (Error.LINK, 0)
    for got, want in zip(memories(tile), memories(before), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize(("came", "wanted"), [(1, 2), (3, 2), (2, 1), (1, 5)])
def test_other_length(came, wanted):
    """The rows before the first one that is wrong are written, no other."""
    rng = np.random.default_rng(5)
    near, far = new_tile(NANO, rng), new_tile(NANO, rng)
    before = far.mantissa.copy()
    fields = dict.fromkeys(("op0", "op4", "masked", *TAG), 0)
    fields |= {"rows": NANO.n, "t_stride": NANO.n, "k_stride": NANO.n}
    transfer = send(fields | {"blocks": came}, [0] * 5, *memories(near), NANO)
    with pytest.raises(LinkFault, match=f"{came * NANO.n} rows came") as fault:
        receive(fields | {"blocks": wanted}, [0] * 5, transfer, *memories(far), NANO)
    written = min(came, wanted) * NANO.n - 1
    assert (fault.value.error, fault.value.rows) == (Error.LINK, written)
    assert np.array_equal(far.mantissa[:written], near.mantissa[:written])
    assert np.array_equal(far.mantissa[written:], before[written:])


@pytest.mark.parametrize("name", ["rows", "blocks"])
def test_no_rows(name):
    tile = new_tile(NANO, np.random.default_rng(6))
    fields = random_send(NANO, np.random.default_rng(7)) | {name: 0}
    with pytest.raises(LinkFault, match=f"{name}=0") as fault:
        send(fields, op_of(fields), *memories(tile), NANO)
    assert fault.value.error == Error.COUNT
