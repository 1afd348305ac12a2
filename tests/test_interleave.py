"""Instructions in the order in which they can start: complete, legal, and faster."""

import random
from itertools import pairwise

import numpy as np
import pytest

import gradmill as gm
from bench.chains import case, modelled
from gradmill.cycle_model import predict
from gradmill.lowering import interleave as interleaving
from gradmill.lowering import pipeline
from gradmill.lowering.buffers import VIRTUAL_ROWS
from gradmill.lowering.footprint import footprint
from gradmill.lowering.interleave import Interleaving, Rules, interleave
from gradmill.lowering.sets import early, held, paced, received
from gradmill_hw.config import NANO, TILE
from gradmill_hw.isa import Class, Opcode
from tests.test_pipeline import network, random_order


#: A network that is balanced on two and on four tiles.
WIDE = (8, 64, 64, 72, 64, 64, 8)
#: widths, B, M, tiles
CASES = [((20, 16, 12, 9, 5), 24, 4, 4), ((9, 12, 7, 5), 10, 3, 2), ((8, 24, 16, 2), 11, 2, 3),
         ((17, 9, 3), 7, 2, 1)]


def lowered(widths, size, sub, tiles, monkeypatch, config=TILE):
    """Codes of all tiles before and after, the interleaving, and its arguments."""
    seen = []
    original = pipeline.interleave

    def spy(*arguments, rules):
        seen.append((arguments, original(*arguments, rules=rules)))
        return seen[-1][1]

    monkeypatch.setattr(pipeline, "interleave", spy)
    with gm.open("emulator", config.replace(tiles=max(2, tiles))) as device:
        trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=size, sub_minibatch=sub, tiles=tiles)
        trainer._lowering.train(size, 1, (1 << 16, 1 << 12), trainer._regions, trainer._losses_at)
    (_, buffers, codes, steps, limits, _), made = seen[-1]
    return buffers, codes, steps, limits, made


def rows_of(touched, which):
    """Keys of what an instruction reads or writes."""
    found = {(memory, row) for memory, rows in getattr(touched, which).items()
             for row in np.unique(rows).tolist()}
    return found | set(getattr(touched, f"memory_{which}"))


def conflicts(code, config):
    """Pairs of numbers of instructions whose order matters, but for panels."""
    touched = [footprint(opcode, fields, config) for opcode, fields in code]
    reads, writes = ([{key for key in rows_of(one, which)
                       if key[0] != "acc" or key[1] < VIRTUAL_ROWS} for one in touched]
                     for which in ("reads", "writes"))
    return {(a, b) for b in range(len(code)) for a in range(b)
            if writes[a] & (reads[b] | writes[b]) or reads[a] & writes[b]}


@pytest.mark.parametrize("case", range(len(CASES)))
def test_dependent_instructions_stay_in_order(case, monkeypatch):
    buffers, codes, _, _, made = lowered(*CASES[case], monkeypatch)
    moved = 0
    for code, order in zip(codes, made.orders, strict=True):
        place = {index: k for k, (index, _) in enumerate(order)}
        assert sorted(place) == list(range(len(code))), "every instruction once"
        assert all(place[a] < place[b] for a, b in conflicts(code, buffers[0].config))
        moved += sum(a > b for a, b in pairwise(index for index, _ in order))
    assert moved > 10, "there is something to gain"


@pytest.mark.parametrize("panels", [1, 2, 4])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_panel_is_read_before_it_is_filled_again(case, panels, monkeypatch):
    buffers, codes, steps, limits, _ = lowered(*CASES[case], monkeypatch)
    for own in buffers:
        del own.panels[panels:]
    made = interleave(buffers[0].config, buffers, codes, steps, limits)
    for own, code in zip(buffers, made.apply(codes), strict=True):
        filled = {}
        for opcode, fields in code:
            touched = footprint(opcode, fields, own.config)
            assert all(rows.max() < own.config.acc_rows for rows in
                       (touched.reads.get("acc"), touched.writes.get("acc")) if rows is not None)
            for panel in own.panels:
                inside = range(panel, panel + own.panel_rows)
                if set(touched.reads.get("acc", np.array([])).tolist()) & set(inside):
                    assert filled.pop(panel) is Opcode.MATMUL
                if opcode is Opcode.MATMUL and fields["op2"] == panel:
                    assert panel not in filled
                    filled[panel] = opcode
        assert not filled


@pytest.mark.parametrize("case", range(3))
def test_every_receive_follows_its_send(case, monkeypatch):
    """The programs agree with one order in which both halves of a transfer are neighbours: taking
    whatever is not a transfer as it comes, and transfers only in pairs, all programs end."""
    _, codes, _, _, made = lowered(*CASES[case], monkeypatch)
    tiles = made.apply(codes)
    at = [0] * len(tiles)

    def local():
        for t, code in enumerate(tiles):
            while at[t] < len(code) and code[at[t]][0] not in (Opcode.SEND, Opcode.RECEIVE):
                at[t] += 1

    def pair():
        for t, code in enumerate(tiles):
            if at[t] < len(code) and code[at[t]][0] is Opcode.SEND:
                fields = code[at[t]][1]
                other = t + (1 if fields["peer"] else -1)
                opcode, their = tiles[other][at[other]]
                if (opcode is Opcode.RECEIVE and their["peer"] != fields["peer"]
                        and (their["sub"], their.get("gradient"))
                        == (fields["sub"], fields.get("gradient"))):
                    at[t], at[other] = at[t] + 1, at[other] + 1
                    return True
        return False

    local()
    while pair():
        local()
    assert at == [len(code) for code in tiles]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_no_tile_holds_more_sets_than_its_limit(case, monkeypatch):
    buffers, codes, steps, limits, made = lowered(*CASES[case], monkeypatch)
    assert_held(codes, made, limits)
    needed = [most_held(code) for code in codes]
    assert_held(codes, interleave(buffers[0].config, buffers, codes, steps, needed), needed)


def assert_held(codes, made, limits):
    for code, limit in zip(made.apply(codes), limits, strict=True):
        assert 0 < most_held(code) <= limit


def most_held(code):
    """Most sets between the marks of a program."""
    alive = most = 0
    for _, fields in code:
        alive += fields.get("hold", 0)
        most = max(most, alive)
        alive -= fields.get("release", 0)
    assert not alive
    return most


def test_it_is_faster_than_one_operation_after_the_other(monkeypatch):
    config, widths = TILE.replace(tiles=4), WIDE
    taken = []
    for plain in (False, True):
        with gm.open("emulator", config) as device:
            trainer = gm.Trainer(network(widths), device, optimizer=gm.SGD(lr=0.1),
                                 virtual_minibatch=192, sub_minibatch=16, tiles=4)
            if plain:
                monkeypatch.setattr(pipeline, "interleave", in_turn)
            programs = trainer._lowering.train(192, 2, (1 << 16, 1 << 12), trainer._regions,
                                               trainer._losses_at)
            taken.append(predict(programs, config).cycles)
    assert taken[0] < 0.8 * taken[1], taken


def in_turn(config, buffers, codes, steps, limits, far=None, rules=None):
    """What :func:`interleave` would be without interleaving: panels in turn."""
    orders, at = [[] for _ in codes], [{} for _ in codes]
    for step in steps:
        for t, index in step.parts:
            used = [row for name in ("op0", "op1", "op2")
                    if (row := codes[t][index][1].get(name, 0)) >= VIRTUAL_ROWS]
            for row in used:
                at[t].setdefault(row, buffers[t].panels[len(at[t]) % 2])
            orders[t].append((index, {row: at[t][row] for row in used}))
    return Interleaving(orders, 0, rules)


@pytest.mark.parametrize("case", range(3))
def test_groups_of_tiles_give_the_order_of_a_plain_search(case, monkeypatch):
    class Plain:
        """Looks at every instruction at every step."""

        def __init__(self, key):
            self.key, self.nodes = key, []

        def add(self, node):
            self.nodes.append(node)

        def take(self):
            node = min(self.nodes, key=self.key)
            self.nodes.remove(node)
            return node

    buffers, codes, steps, limits, made = lowered(*CASES[case], monkeypatch)
    monkeypatch.setattr(interleaving, "_Ready", Plain)
    plain = interleave(buffers[0].config, buffers, codes, steps, limits)
    assert plain.orders == made.orders


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_placing_takes_the_cycles_that_the_model_predicts(tiles, monkeypatch):
    """Of a virtual minibatch after others like it, if there are several tiles."""
    placed = []

    def spy(*arguments, rules):
        placed.append(interleave(*arguments, rules=rules))
        return placed[-1]

    monkeypatch.setattr(pipeline, "interleave", spy)
    two, four = cycles(tiles, 8, 2, 4) if tiles > 1 else (0, 2 * cycles(tiles, 8, 1)[0])
    assert min(made.cycles for made in placed) == pytest.approx((four - two) / 2, rel=0.01)


@pytest.mark.parametrize(("widths", "size", "sub", "best"), [
    (WIDE, 32, 16, 0), (WIDE, 64, 16, 1), ((32,) * 5, 64, 16, 2), ((48,) * 9, 64, 16, 3)])
def test_the_order_that_follows_itself_soonest_counts(widths, size, sub, best, monkeypatch):
    """Sometimes the one for idle tiles, sometimes the one behind a virtual minibatch, the one that
    does not look at banks, or the one that thinks of the vector unit alone."""
    periods = []
    original = interleaving._period

    def spy(*arguments):
        periods.append(original(*arguments))
        return periods[-1]

    monkeypatch.setattr(interleaving, "_period", spy)
    *_, made = lowered(widths, size, sub, 4, monkeypatch)
    others = periods[:best] + periods[best + 1:4]
    assert periods[best] < min(others)
    assert made.cycles == min(periods[-4:])


def cycles(tiles, count, *virtual):
    """Predicted cycles of each number of virtual minibatches of ``count`` sub-minibatches of 16
    samples."""
    config = TILE.replace(tiles=4)
    with gm.open("emulator", config) as device:
        trainer = gm.Trainer(network(WIDE), device, optimizer=gm.SGD(lr=0.1, momentum=0.9),
                             virtual_minibatch=16 * count, sub_minibatch=16, tiles=tiles)
    return [predict(trainer._lowering.train(16 * count, v, (1 << 16, 1 << 12), trainer._regions,
                                            trainer._losses_at), config).cycles
            for v in virtual]


def test_hurried_forwards_shorten_a_virtual_minibatch(monkeypatch):
    one, two = cycles(4, 8, 1, 2)
    monkeypatch.setattr(pipeline.Lowering, "_hurried", property(lambda _: (), lambda *_: None),
                        raising=False)
    alone, both = cycles(4, 8, 1, 2)
    assert two - one < both - alone


@pytest.mark.parametrize(("tiles", "work", "once"), [
    pytest.param(2, 6912, 9000, marks=pytest.mark.xfail(
        strict=True, reason="2.2 % above the products by the cycle model")), (4, 3456, 6500)])
def test_steady_state(tiles, work, once):
    """A sub-minibatch more takes hardly more than the products of the slowest tile, a virtual
    minibatch costs a fixed time beyond that."""
    few, many = (two - one for one, two in (cycles(tiles, count, 1, 2) for count in (8, 16)))
    assert many - few < 1.02 * 8 * work, (few, many)
    assert many - 16 * work < once, (few, many)


def test_what_is_complete_is_sent_while_the_rest_is_computed(monkeypatch):
    """Column blocks go to the neighbour product by product: the first ones before the last product
    of the same output has been put away."""
    _, codes, _, _, made = lowered((8, 64, 64, 8), 64, 16, 2, monkeypatch)
    code = made.apply(codes)[0]
    sends = [(k, fields) for k, (opcode, fields) in enumerate(code) if opcode is Opcode.SEND]
    assert len(sends) == 2 * 4, "two pieces for each sub-minibatch"
    for (first, one), (second, other) in zip(sends[::2], sends[1::2], strict=True):
        assert one["sub"] == other["sub"] and one["op0"] < other["op0"]
        put = max(k for k, (opcode, fields) in enumerate(code[:second])
                  if opcode is Opcode.VECTOR and fields.get("op3") == other["op0"])
        assert first < put


# Sets -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(6))
def test_a_paced_order_has_the_same_operations_and_fewer_sets(seed):
    rng = random.Random(seed)
    tiles, count, cap = rng.randrange(2, 5), rng.randrange(3, 12), rng.randrange(2, 6)
    order = random_order(tiles, count, cap, rng)
    limits = [cap] * tiles
    found = paced(order, limits)
    for t in range(tiles):
        assert [step for step in found if step[0] == t] == [step for step in order if step[0] == t]
    done = set()
    for t, kind, j in found:
        assert kind != "F" or t == 0 or (t - 1, "F", j) in done
        assert kind != "B" or t == tiles - 1 or (t + 1, "B", j) in done
        done.add((t, kind, j))
    assert held(found, tiles) == held(order, tiles)
    if found != tuple(order):
        assert all(max(pair) <= cap for pair in received(found, tiles))


@pytest.mark.parametrize("seed", range(6))
def test_pacing_takes_the_first_step_that_is_possible(seed):
    rng = random.Random(seed)
    tiles, count, cap = rng.randrange(2, 5), rng.randrange(3, 12), rng.randrange(2, 6)
    order = random_order(tiles, count, cap, rng)
    limits = [rng.randrange(2, 6) for _ in range(tiles)]
    done = {(t, kind): 0 for t in range(tiles) for kind in "FBW"}

    def possible(t, kind, j):
        if kind == "W":
            return True
        source, target = (t - 1, t + 1) if kind == "F" else (t + 1, t - 1)
        return ((not 0 <= source < tiles or done[source, kind] > j)
                and (not 0 <= target < tiles or j < done[target, "W"] + limits[target]))

    found, rest = [], list(order)
    while rest:
        heads = {t: next((step for step in rest if step[0] == t), None) for t in range(tiles)}
        step = next((step for step in rest if step == heads[step[0]] and possible(*step)), None)
        if step is None:
            found = order
            break
        rest.remove(step)
        done[step[:2]] += 1
        found.append(step)
    assert paced(order, limits) == tuple(found)


def test_a_tile_does_not_run_ahead_of_the_sets_of_the_next():
    ahead = [(0, "F", j) for j in range(3)]
    rest = [step for j in range(3) for step in
            [(1, kind, j) for kind in "FBW"] + [(0, kind, j) for kind in "BW"]]
    assert received(ahead + rest, 2) == [(3, 1), (3, 1)]
    assert received(paced(ahead + rest, [3, 1]), 2) == [(3, 2), (1, 1)]


def test_an_order_that_cannot_be_paced_stays():
    order = [(t, kind, j) for kind in "FBW" for j in range(3) for t in
             (range(2) if kind == "F" else reversed(range(2)))]
    assert paced(order, [3, 3]) == tuple(order)
    assert paced(order, [1, 1]) == tuple(order)


@pytest.mark.parametrize(("rows", "sets"), [(512, 2), (256, 1)])
def test_a_second_set_where_there_is_room(rows, sets):
    config = NANO.replace(tensor_rows=rows, acc_rows=1024)
    with gm.open("emulator", config) as device:
        trainer = gm.Trainer(network((12, 16, 8)), device, optimizer=gm.SGD(lr=0.1),
                             virtual_minibatch=32, sub_minibatch=8)
        (buffers,) = trainer._lowering.buffers
        assert len(buffers.x) == len(buffers.dy) == sets
        trainer.fit(np.ones((32, 12), np.float32), np.zeros(32, int), epochs=1)


def test_the_last_tile_begins_forwards_early_if_it_may_keep_the_sets():
    order = [(0, "F", 0), (1, "F", 0), (1, "B", 0), (0, "F", 1), (1, "F", 1), (1, "B", 1),
             (1, "W", 0), (1, "W", 1)]
    assert early(order, [2, 1]) == order
    found = early(order, [2, 2])
    assert [step[1:] for step in found if step[0] == 1][:3] == [("F", 0), ("F", 1), ("B", 0)]
    assert sorted(found) == sorted(order) and held(found, 2)[1] == 2


def test_one_tile_without_room_does_not_take_sets_from_the_others():
    made = gm.plan(network((64, 8, 8, 8)), TILE.replace(tiles=3, tensor_rows=512),
                   virtual_minibatch=192, sub_minibatch=16)
    assert made.sets[0] < made.sets[2] == 5


def test_loads_that_yield_let_activations_pass(monkeypatch):
    """Parameters wait until the bus is free, activations that come back do not."""
    seen = []

    def spy(*arguments, rules):
        seen.append(arguments)
        return interleave(*arguments, rules=rules or [Rules()])

    monkeypatch.setattr(pipeline, "interleave", spy)
    modelled(*case(62))
    _, _, (code,), *_ = seen[0]
    places = []
    for yields in (False, True):
        (order,) = interleave(*seen[0], rules=[Rules(yields=yields)]).orders
        loads = [code[index][1]["cls"] for index, _ in order if code[index][0] is Opcode.LOAD]
        places.append(sum(place for place, cls in enumerate(loads) if cls == Class.STASH))
    assert places[1] < places[0]
