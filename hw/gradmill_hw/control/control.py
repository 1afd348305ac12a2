"""The control path of a tile: registers, program, queues, and what happens when something fails."""

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..isa import numbers
from ..isa_layout import command_layout
from ..memory.axi import AxiLite
from ..memory.axi_reader import ReadClient
from ..memory.load import Traffic
from ..memory.window import windows_layout
from ..regs import REGS, SCALARS, SEQUENCER, WINDOWS, Error, Tier
from .counters import Counters
from .csr import ADDRESS_BITS, RegisterBank, port_name
from .fetch import Fetch
from .ports import Activity, End, TableWrites, UnitEvents
from .queue import CommandQueue
from .semaphores import Semaphores
from .sequencer import Sequencer
from .store import QUEUE_OPCODES, CommandStore
from .watchdog import Watchdog


__all__ = ["ControlPath"]


class State(enum.Enum):
    """Of a tile."""
    IDLE   = 0
    RUN    = 1
    SETTLE = 2  # an error came: what was started ends
    ERROR  = 3
    DRAIN  = 4  # soft reset: the bus becomes idle
    RESET  = 5


class ControlPath(wiring.Component):
    """All of a tile that is neither memory nor arithmetic.

    An error stops its queue and the sequencer at once. Nothing new is started; when the other
    queues have ended what they had started, or the watchdog has lost its patience, the tile is in
    error. A soft reset forgets all commands, tells the units to ``abort``, waits until ``bus_busy``
    has fallen and then resets the units.

    Parameters
    ----------
    config : Config
        Sizes.

    Members
    -------
    bus : In(AxiLite(12))
        Host.
    irq : Out(1)
        An enabled event is pending.
    tile : In(8)
        Number of this tile in the chain.
    <queue>_cmd : Out(stream.Signature(command_layout(opcode)))
        Commands of each queue, in order, each with its semaphores taken.
    <queue>_end : In(End())
        Their completions, in order.
    activity : Out(Activity(config))
        What begins and ends in this cycle.
    fetch : Out(ReadClient(config))
        Near memory.
    windows : Out(windows_layout(config))
        Granted windows; constant while busy.
    scalars : Out(data.ArrayLayout(32, 8))
        Scalar registers; constant while busy.
    seed, step : Out(32)
        Key of random numbers; constant while busy.
    tables : Out(TableWrites())
        With the stash codec; while idle.
    events : In(UnitEvents)
        For counters, flags and watchdog.
    macs : In(2 * log2(n) + 1)
        Multiply-accumulates done in this cycle.
    read_traffic, write_traffic : In(Traffic(config)).array
        Of load and store, and of the copy unit if there is one; for counters and watchdog.
    abort : Out(1)
        Units: end what the bus has accepted, forget the rest; one cycle.
    bus_busy : In(1)
        A unit still has to do with the bus. Looked at from four cycles after ``abort``.
    resetting : Out(1)
        A soft reset is going on; high for some cycles before and during ``soft_reset``.
    soft_reset : Out(1)
        Units: return to the state after reset; one cycle.
    """

    def __init__(self, config):
        self.config = config
        members, traffics = {}, 1 + config.copy
        for queue in config.queues:
            name = queue.name.lower()
            members[f"{name}_cmd"] = Out(stream.Signature(command_layout(QUEUE_OPCODES[queue])))
            members[f"{name}_end"] = In(End())
        super().__init__({
            "bus":           In(AxiLite(ADDRESS_BITS)),
            "irq":           Out(1),
            "tile":          In(8),
            **members,
            "activity":        Out(Activity(config)),
            "fetch":         Out(ReadClient(config)),
            "windows":       Out(windows_layout(config)),
            "scalars":       Out(data.ArrayLayout(32, SCALARS)),
            "seed":          Out(32),
            "step":          Out(32),
            "tables":        Out(TableWrites()),
            "events":        In(UnitEvents),
            "macs":          In(2 * config.lane_bits + 1),
            "read_traffic":  In(Traffic(config)).array(traffics),
            "write_traffic": In(Traffic(config)).array(traffics),
            "abort":         Out(1),
            "bus_busy":      In(1),
            "resetting":     Out(1),
            "soft_reset":    Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, depth = self.config, self.config.queue_depth
        forget = Signal()  # drop the program
        bank       = RegisterBank(config, taps=lambda reg: not reg.name.startswith("argument"))
        fetch      = Fetch(config)
        sequencer  = Sequencer(config.queues)
        semaphores = Semaphores(config.queues)
        store      = CommandStore(config.queues, depth=depth)
        counters   = Counters(config)
        watchdog   = Watchdog()
        queues     = [CommandQueue(queue, config.queues, depth=depth) for queue in config.queues]
        ends       = [getattr(self, f"{queue.name.lower()}_end") for queue in config.queues]
        cmds       = [getattr(self, f"{queue.name.lower()}_cmd") for queue in config.queues]

        m.submodules.bank       = bank
        m.submodules.store      = store
        m.submodules.counters   = counters
        m.submodules.watchdog   = watchdog
        m.submodules.fetch      = ResetInserter(self.soft_reset)(fetch)
        m.submodules.sequencer  = ResetInserter(forget)(sequencer)
        m.submodules.semaphores = ResetInserter(forget)(semaphores)
        for queue, unit in zip(config.queues, queues, strict=True):
            m.submodules[f"queue_{queue.name.lower()}"] = ResetInserter(forget)(unit)

        # Host to program: fetch, sequencer, queues, units.
        connect(m, flipped(self.bus), bank.bus)
        connect(m, bank.counters, counters.port)
        connect(m, bank.stored, sequencer.arguments)
        connect(m, sequencer.jump, fetch.jump)
        connect(m, fetch.o, sequencer.i)
        connect(m, fetch.client, flipped(self.fetch))
        self._host_values(m, bank)
        m.d.comb += fetch.windows.eq(self.windows[Tier.NEAR])
        self._queues(m, sequencer, store, semaphores, queues, cmds)

        # An error is the first of: a queue's, in the order of their numbers, the sequencer's.
        state   = Signal(State)
        failed  = Signal(numbers(config.queues))
        code    = Signal(Error)
        culprit = Signal(4)
        address = Signal(40)
        lost    = Signal()
        m.d.comb += [code.eq(sequencer.fault), culprit.eq(SEQUENCER)]
        with m.If(watchdog.expired & (sequencer.fault == Error.NONE)):
            m.d.comb += code.eq(Error.WATCHDOG)
        for queue, unit, end in reversed([*zip(config.queues, queues, ends, strict=True)]):
            bad = end.error != Error.NONE
            m.d.comb += [
                unit.done.eq(end.done),
                unit.failed.eq(bad | semaphores.overflow[queue]),
                failed[queue].eq(unit.failed),
            ]
            with m.If(failed[queue]):
                m.d.comb += [
                    code.eq(Mux(bad, end.error, Error.SEMAPHORE_OVERFLOW)),
                    culprit.eq(queue),
                    address.eq(end.address),
                ]
        m.d.comb += lost.eq(failed.any() | (sequencer.fault != Error.NONE) | watchdog.expired)

        # Life of a tile.
        settled = Cat(unit.settled for unit in queues).all()
        quiet   = Signal(range(4))
        m.d.comb += [
            forget.eq(bank.ctrl_soft_reset | self.soft_reset),
            fetch.abort.eq(state != State.RUN),
            sequencer.start.eq(bank.ctrl_start & (state == State.IDLE) & ~bank.ctrl_soft_reset),
            sequencer.program.eq(Cat(bank.program_lo, bank.program_hi)[6:]),
            sequencer.stop.eq(state != State.RUN),
            self.soft_reset.eq(state == State.RESET),
            watchdog.limit.eq(bank.watchdog),
            watchdog.active.eq((state == State.RUN) | (state == State.SETTLE)),
            bank.busy.eq((state != State.IDLE) & (state != State.ERROR)),
            bank.status_busy.eq(bank.busy),
            bank.status_error.eq(state == State.ERROR),
            bank.status_resetting.eq((state == State.DRAIN) | (state == State.RESET)),
        ]
        m.d.sync += self.resetting.eq(bank.status_resetting)
        for unit in queues:
            m.d.comb += unit.stop.eq(state != State.RUN)
        m.d.sync += [self.abort.eq(0), bank.status_done.eq(0), bank.irq_status_error.eq(0)]
        m.d.comb += bank.irq_status_done.eq(bank.status_done)
        with m.Switch(state):
            with m.Case(State.IDLE):
                with m.If(sequencer.start):
                    m.d.sync += state.eq(State.RUN)
            with m.Case(State.RUN):
                with m.If(sequencer.done):
                    m.d.sync += [state.eq(State.IDLE), bank.status_done.eq(1)]
                with m.Elif(lost):
                    m.d.sync += [
                        state.eq(State.SETTLE),
                        bank.error_code.eq(code),
                        bank.error_queue.eq(culprit),
                        Cat(bank.error_address_lo, bank.error_address_hi).eq(address),
                    ]
            with m.Case(State.SETTLE):
                with m.If(settled | watchdog.expired):
                    m.d.sync += [state.eq(State.ERROR), bank.irq_status_error.eq(1)]
            with m.Case(State.DRAIN):
                m.d.sync += quiet.eq(quiet - (quiet != 0))
                with m.If((quiet == 0) & fetch.idle & ~self.bus_busy):
                    m.d.sync += state.eq(State.RESET)
            with m.Case(State.RESET):
                m.d.sync += [
                    state.eq(State.IDLE),
                    bank.error_code.eq(Error.NONE),
                    bank.error_queue.eq(0),
                    Cat(bank.error_address_lo, bank.error_address_hi).eq(0),
                ]
        with m.If(bank.ctrl_soft_reset & (state != State.RESET)):
            m.d.sync += [state.eq(State.DRAIN), self.abort.eq(1), quiet.eq(3)]

        self._names(m, bank, sequencer, store, semaphores, queues)
        self._stash(m, bank, queues)
        self._events(m, bank, sequencer, semaphores, counters, watchdog, queues, ends, cmds, state)
        return m

    def _host_values(self, m, bank):
        """Registers that units use as they are."""
        m.d.comb += [
            self.seed.eq(bank.seed),
            self.step.eq(bank.step),
            *(self.scalars[k].eq(getattr(bank, f"scalar{k}")) for k in range(SCALARS)),
            self.irq.eq((bank.irq_enable_done & bank.irq_status_done_q)
                        | (bank.irq_enable_error & bank.irq_status_error_q)),
        ]
        bits = self.config.address_bits
        for tier in Tier:
            for k in range(WINDOWS):
                name   = f"{tier.name.lower()}_window{k}"
                base   = Cat(getattr(bank, f"{name}_base_lo"), getattr(bank, f"{name}_base_hi"))
                limit  = Cat(getattr(bank, f"{name}_limit_lo"), getattr(bank, f"{name}_limit_hi"))
                exists = Signal(name=f"exists_{name}")
                window = self.windows[tier][k]
                m.d.comb += [
                    exists.eq(~(base[bits:].any() | limit[bits + 1:].any()
                                | (limit[bits] & limit[:bits].any()))),
                    window.base.eq(base),
                    window.limit.eq(limit),
                    window.read.eq(getattr(bank, f"{name}_control_read") & exists),
                    window.write.eq(getattr(bank, f"{name}_control_write") & exists),
                ]

    def _queues(self, m, sequencer, store, semaphores, queues, cmds):
        """Commands from the sequencer through places and semaphores to the units."""
        dispatch = sequencer.o
        ready    = Signal()
        place    = Signal(range(self.config.queue_depth))
        with m.Switch(dispatch.p.queue):
            for queue, unit in zip(self.config.queues, queues, strict=True):
                with m.Case(queue):
                    m.d.comb += [
                        ready.eq(unit.ready),
                        place.eq(unit.push_place),
                        unit.push.eq(dispatch.valid & unit.ready),
                    ]
        m.d.comb += [
            dispatch.ready.eq(ready),
            store.write.eq(dispatch.valid & ready),
            store.queue.eq(dispatch.p.queue),
            store.place.eq(place),
            store.command.eq(dispatch.p.command),
            store.pc.eq(dispatch.p.pc),
            sequencer.queues_empty.eq(Cat(unit.empty for unit in queues).all()),
        ]
        for queue, unit, cmd in zip(self.config.queues, queues, cmds, strict=True):
            m.d.comb += [
                unit.push_wait.eq(dispatch.p.wait),
                unit.push_post.eq(dispatch.p.post),
                unit.push_keeps.eq(dispatch.p.keeps),
                store.fetch[queue].eq(unit.fetch),
                store.fetch_place[queue].eq(unit.fetch_place),
                unit.fetched.eq(store.fetched[queue]),
                semaphores.wait[queue].eq(unit.wait),
                semaphores.post[queue].eq(unit.post),
                semaphores.take[queue].eq(unit.request),
                unit.granted.eq(semaphores.available[queue]),
                cmd.valid.eq(unit.start),
                cmd.payload.eq(getattr(store, f"head_{queue.name.lower()}")),
                unit.accept.eq(cmd.ready),
            ]

    def _names(self, m, bank, sequencer, store, semaphores, queues):
        """Program counters and semaphores for the host: of a queue, or of the error."""
        waiting = REGS["waiting_load_pc_lo"].offset // 4
        asked   = bank.read_address[waiting.bit_length() - 1]  # one of the waiting registers
        whose   = Signal(4)
        oldest  = [C(0)] * numbers(self.config.queues)
        for queue, unit in zip(self.config.queues, queues, strict=True):
            oldest[queue] = unit.oldest
        pc      = Signal(40)
        m.d.comb += [
            whose.eq(Mux(asked, bank.read_address[2:5], bank.error_queue)),
            store.name_queue.eq(whose),
            store.name_place.eq(
                Array(oldest)[whose[:len(store.name_queue)]]),
            bank.tile.eq(self.tile),
            pc[6:].eq(Mux(whose == SEQUENCER, sequencer.pc, store.name_pc)),
        ]
        m.d.comb += [bank.error_pc_lo.eq(pc), bank.error_pc_hi.eq(pc[32:])]
        for queue, unit in zip(self.config.queues, queues, strict=True):
            name = f"waiting_{queue.name.lower()}"
            for suffix, value in (
                ("pc_lo", pc[:32]), ("pc_hi", pc[32:]), ("valid", ~unit.empty),
                ("started", unit.executing), ("missing", semaphores.missing[queue]),
            ):
                m.d.comb += getattr(bank, f"{name}_{suffix}").eq(value)

    def _events(self, m, bank, sequencer, semaphores, counters, watchdog, queues, ends, cmds,
                state):
        """What is counted, kept in mind and taken as progress."""
        seen = counters.events
        m.d.comb += [
            seen.cycles.eq(state == State.RUN),
            seen.macs.eq(self.macs),
            seen.fetch_stall.eq(sequencer.starved & (state == State.RUN)),
            *(seen[name].eq(self.events[name])
              for name in data.Layout.cast(UnitEvents).members if name in seen.shape().members),
            *(getattr(bank, f"flags_{name}").eq(self.events[name])
              for name in ("matrix_nonfinite", "vector_nonfinite", "saturated")),
            *(ours.eq(theirs) for ours, theirs in zip(
                (*counters.read, *counters.write),
                (*self.read_traffic, *self.write_traffic), strict=True)),
            counters.instruction.eq(sequencer.executed),
            counters.clear.eq(bank.ctrl_clear_counters),
        ]
        progress = [sequencer.executed, self.events.array_rows, self.events.vector_rows,
                    self.events.link_in_rows, self.events.link_out_rows]
        for traffic in (*self.read_traffic, *self.write_traffic):
            progress += [traffic.moved, traffic.bytes.any()]
        for queue, unit, end, cmd in zip(self.config.queues, queues, ends, cmds, strict=True):
            name = queue.name.lower()
            m.d.comb += [
                seen[f"instructions_{name}"].eq(unit.executing & end.done
                                                & (end.error == Error.NONE)),
                seen[f"busy_{name}"].eq(unit.executing),
                seen[f"wait_{name}"].eq(unit.request & ~semaphores.available[queue]),
            ]
            begins, ends_now = cmd.valid & cmd.ready, unit.executing & end.done
            m.d.sync += [
                self.activity.begin[queue].eq(begins),
                self.activity.end[queue].eq(ends_now),
            ]
            progress += [end.done, begins]
        m.d.comb += watchdog.progress.eq(Cat(progress).any())

    def _stash(self, m, bank, queues):
        """Sets of activations that are kept, and the most that were; tables of the codec."""
        sets, highest = bank.stash_sets, bank.stash_highest
        holds, releases = (sum(unit.keeps[k] for unit in queues) for k in range(2))
        kept = Signal.like(sets)
        m.d.comb += kept.eq(sets + holds - releases)
        m.d.sync += sets.eq(Mux(self.soft_reset, 0, kept))
        with m.If((kept > highest) | bank.ctrl_clear_counters | self.soft_reset):
            m.d.sync += highest.eq(Mux(self.soft_reset, 0, kept))
        if self.config.stash:
            for side in ("encode", "decode"):
                *entry, write = (getattr(bank, port_name(REGS[f"stash_{side}"], field))
                                 for field in REGS[f"stash_{side}"].fields)
                m.d.sync += [
                    Value.cast(getattr(self.tables, side)).eq(Cat(entry)),
                    getattr(self.tables, f"{side}_valid").eq(write),
                ]
