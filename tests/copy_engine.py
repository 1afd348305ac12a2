"""A small device with the ports of the real one: copies bursts from one memory to the other.

It can break bus rules on purpose, so that the monitors of the simulated board can be tested.
"""

from enum import IntEnum

from amaranth import *
from amaranth.back import verilog
from amaranth.lib import memory


__all__ = ["CopyEngine", "Misdeed", "Register", "copy_engine_verilog"]


class Register(IntEnum):
    """Byte addresses."""

    START = 0x00  # write: begins a copy and clears the interrupt
    SOURCE = 0x04
    TARGET = 0x08
    LAST_BEAT = 0x0C  # beats of a burst, minus one
    BURSTS = 0x10
    FROM_FAR = 0x14  # 0: near to far, 1: far to near
    MISDEED = 0x18
    RESPONSES = 0x1C  # every response so far, or-ed
    KEPT = 0x20  # of each four bytes, those that are not written, one bit each


class Misdeed(IntEnum):
    """What the engine does wrong."""

    NONE = 0
    DROP_ADDRESS = 1  # ARVALID falls before ARREADY
    EARLY_LAST = 2  # WLAST one beat early
    CHANGE_DATA = 3  # WDATA changes while WREADY is low


_TO_MEMORY = {"awid": 1, "awaddr": 32, "awlen": 8, "awsize": 3, "awburst": 2, "awvalid": 1,
              "wlast": 1, "wvalid": 1, "bready": 1, "arid": 1, "araddr": 32, "arlen": 8,
              "arsize": 3, "arburst": 2, "arvalid": 1, "rready": 1}
_TO_DEVICE = {"awready": 1, "wready": 1, "bid": 1, "bresp": 2, "bvalid": 1, "arready": 1,
              "rid": 1, "rresp": 2, "rlast": 1, "rvalid": 1}
_HOST = {"awaddr": 16, "awvalid": 1, "awready": 1, "wdata": 32, "wstrb": 4, "wvalid": 1,
         "wready": 1, "bresp": 2, "bvalid": 1, "bready": 1, "araddr": 16, "arvalid": 1,
         "arready": 1, "rdata": 32, "rresp": 2, "rvalid": 1, "rready": 1}


class CopyEngine(Elaboratable):
    """Reads a burst into a buffer, writes it, goes on with the next.

    Parameters
    ----------
    width : int
        Data width of both memory ports.
    """

    def __init__(self, width):
        self.width = width
        extra = {"wdata": width, "wstrb": width // 8, "rdata": width}
        self.tiers = {tier: {name: Signal(shape, name=f"m_axi_{tier}_{name}")
                             for name, shape in (_TO_MEMORY | _TO_DEVICE | extra).items()}
                      for tier in ("near", "far")}
        self.host = {name: Signal(shape, name=f"s_axil_{name}") for name, shape in _HOST.items()}
        self.irq = Signal()

    def ports(self):
        """Every port, for the converter."""
        yield self.irq
        for group in (self.host, *self.tiers.values()):
            yield from group.values()

    def elaborate(self, platform):
        m = Module()
        registers = {register: Signal(32, name=register.name.lower()) for register in Register}
        go = self._host_port(m, registers)
        beat_bytes = self.width // 8

        port = {name: Signal(signal.shape(), name=name)
                for name, signal in self.tiers["near"].items()}
        from_far = registers[Register.FROM_FAR][0]
        for name in (*_TO_DEVICE, "rdata"):
            reads = name[:2] == "ar" or name[0] == "r"
            near, far = (self.tiers[tier][name] for tier in ("near", "far"))
            m.d.comb += port[name].eq(Mux(from_far == reads, far, near))
        for name in (*_TO_MEMORY, "wdata", "wstrb"):
            reads = name[:2] == "ar" or name[0] == "r"
            for number, tier in enumerate(("near", "far")):
                used = from_far == (number if reads else 1 - number)
                m.d.comb += self.tiers[tier][name].eq(Mux(used, port[name], 0))

        m.submodules.buffer = buffer = memory.Memory(shape=self.width, depth=256, init=[])
        w_port, r_port = buffer.write_port(), buffer.read_port(domain="comb")
        beat, offset, bursts = Signal(8), Signal(32), Signal(32)
        stalled, flip = Signal(4), Signal()
        last = beat == registers[Register.LAST_BEAT][:8]
        misdeed = registers[Register.MISDEED]
        size = beat_bytes.bit_length() - 1
        m.d.comb += [
            port["araddr"].eq(registers[Register.SOURCE] + offset),
            port["awaddr"].eq(registers[Register.TARGET] + offset),
            *(port[f"{c}len"].eq(registers[Register.LAST_BEAT]) for c in ("ar", "aw")),
            *(port[f"{c}size"].eq(size) for c in ("ar", "aw")),
            *(port[f"{c}burst"].eq(1) for c in ("ar", "aw")),
            w_port.addr.eq(beat), w_port.data.eq(port["rdata"]), r_port.addr.eq(beat),
            port["wdata"].eq(r_port.data ^ flip),
            port["wstrb"].eq((~registers[Register.KEPT][:4]).replicate(beat_bytes // 4)),
            port["wlast"].eq(last),
        ]
        with m.If(misdeed == Misdeed.EARLY_LAST):
            m.d.comb += port["wlast"].eq(beat + 1 == registers[Register.LAST_BEAT][:8])

        with m.FSM():
            with m.State("idle"):
                with m.If(go):
                    m.d.sync += [bursts.eq(registers[Register.BURSTS]), offset.eq(0),
                                 self.irq.eq(0)]
                    m.next = "ar"
            with m.State("ar"):
                m.d.comb += port["arvalid"].eq((misdeed != Misdeed.DROP_ADDRESS) | ~stalled[0])
                m.d.sync += stalled.eq(stalled + 1)
                with m.If(port["arvalid"] & port["arready"]):
                    m.d.sync += [beat.eq(0), stalled.eq(0)]
                    m.next = "r"
            with m.State("r"):
                m.d.comb += [port["rready"].eq(1), w_port.en.eq(port["rvalid"])]
                with m.If(port["rvalid"]):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(port["rlast"]):
                        m.d.sync += beat.eq(0)
                        m.next = "aw"
            with m.State("aw"):
                m.d.comb += port["awvalid"].eq(1)
                with m.If(port["awready"]):
                    m.next = "w"
            with m.State("w"):
                m.d.comb += port["wvalid"].eq(1)
                m.d.sync += flip.eq((misdeed == Misdeed.CHANGE_DATA) & ~port["wready"])
                with m.If(port["wready"]):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(last):
                        m.next = "b"
            with m.State("b"):
                m.d.comb += port["bready"].eq(1)
                with m.If(port["bvalid"]):
                    m.d.sync += [offset.eq(offset + beat_bytes
                                           * (registers[Register.LAST_BEAT][:8] + 1)),
                                 bursts.eq(bursts - 1)]
                    m.next = "ar"
                    with m.If(bursts == 1):
                        m.d.sync += self.irq.eq(1)
                        m.next = "idle"

        responses = registers[Register.RESPONSES]
        with m.If(port["rvalid"] & port["rready"]):
            m.d.sync += responses.eq(responses | port["rresp"])
        with m.If(port["bvalid"] & port["bready"]):
            m.d.sync += responses.eq(responses | port["bresp"])
        return m

    def _host_port(self, m, registers):
        """One access at a time; returns the strobe of the start register."""
        host, go = self.host, Signal()
        write = Signal()
        m.d.comb += [write.eq(host["awvalid"] & host["wvalid"] & ~host["bvalid"]),
                     host["awready"].eq(write), host["wready"].eq(write),
                     host["arready"].eq(~host["rvalid"])]
        with m.If(host["bvalid"] & host["bready"]):
            m.d.sync += host["bvalid"].eq(0)
        with m.If(write):
            m.d.sync += [host["bvalid"].eq(1), host["bresp"].eq(0)]
            with m.Switch(host["awaddr"]):
                for register, signal in registers.items():
                    with m.Case(register):
                        m.d.sync += signal.eq(host["wdata"])
                        if register == Register.START:
                            m.d.comb += go.eq(1)
                with m.Default():
                    m.d.sync += host["bresp"].eq(2)
        with m.If(host["rvalid"] & host["rready"]):
            m.d.sync += host["rvalid"].eq(0)
        with m.If(host["arvalid"] & host["arready"]):
            m.d.sync += [host["rvalid"].eq(1), host["rresp"].eq(2)]
            with m.Switch(host["araddr"]):
                for register, signal in registers.items():
                    with m.Case(register):
                        m.d.sync += [host["rdata"].eq(signal), host["rresp"].eq(0)]
        return go


def copy_engine_verilog(width):
    """Verilog text with the top module ``gradmill``."""
    engine = CopyEngine(width)
    return verilog.convert(engine, name="gradmill", ports=list(engine.ports()))
