"""Load, store, bus sides and on-chip memories together, under Verilator."""

import pytest
from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from gradmill_hw.config import get_config
from gradmill_hw.isa import Opcode
from gradmill_hw.isa_layout import command_layout
from gradmill_hw.memory.axi import Axi4, join
from gradmill_hw.memory.axi_reader import AxiReader
from gradmill_hw.memory.axi_writer import AxiWriter
from gradmill_hw.memory.banked import BankedMemory
from gradmill_hw.memory.load import Load
from gradmill_hw.memory.ports import fp32_row, mask_row
from gradmill_hw.memory.store import Store
from gradmill_hw.memory.tensor_memory import TensorMemory
from gradmill_hw.memory.window import windows_layout
from gradmill_hw.regs import Error
from tb.run import run_bench


class LoadStore(wiring.Component):
    """Everything between two AXI4 ports and the on-chip memories."""

    def __init__(self, config):
        self.config = config
        axi = Axi4(config.address_bits, config.bus_bits)
        super().__init__(
            {
                "load_cmd": In(stream.Signature(command_layout(Opcode.LOAD))),
                "store_cmd": In(stream.Signature(command_layout(Opcode.STORE))),
                "windows": In(windows_layout(config)),
                "seed": In(32),
                "step": In(32),
                "near": Out(axi),
                "far": Out(axi),
                "load_done": Out(1),
                "load_error": Out(Error),
                "store_done": Out(1),
                "store_error": Out(Error),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.load = load = Load(config)
        m.submodules.store = store = Store(config)
        m.submodules.tensor = tensor = TensorMemory(config, readers=1, writers=1)
        m.submodules.acc = acc = BankedMemory(
            fp32_row(config), depth=config.acc_rows, banks=config.banks, readers=1, writers=1
        )
        m.submodules.mask = mask = BankedMemory(
            mask_row(config), depth=config.mask_rows, banks=1, readers=1, writers=1
        )
        for name, memory in (("tensor", tensor), ("acc", acc), ("mask", mask)):
            wiring.connect(m, getattr(load, f"{name}_write"), memory.write[0])
            wiring.connect(m, getattr(store, f"{name}_read"), memory.read[0])
        for unit, cmd in ((load, self.load_cmd), (store, self.store_cmd)):
            wiring.connect(m, wiring.flipped(cmd), unit.cmd)
            m.d.comb += unit.windows.eq(self.windows)
            m.d.comb += [unit.seed.eq(self.seed), unit.step.eq(self.step)]
        m.d.comb += [
            self.load_done.eq(load.done),
            self.load_error.eq(load.error),
            self.store_done.eq(store.done),
            self.store_error.eq(store.error),
        ]
        for tier in ("near", "far"):
            m.submodules[f"{tier}_reader"] = reader = AxiReader(config, clients=1)
            m.submodules[f"{tier}_writer"] = writer = AxiWriter(config)
            wiring.connect(m, getattr(load, tier), reader.clients[0])
            wiring.connect(m, getattr(store, tier), writer.client)
            join(m, getattr(self, tier), reader.axi, writer.axi)
        return m


@pytest.mark.rtl
@pytest.mark.parametrize("config, stash", [
    ("nano", 0), ("nano", 1), pytest.param("tile", 1, marks=pytest.mark.long),
    pytest.param("edge", 0, marks=pytest.mark.long)])
def test_rtl(tmp_path, config, stash):
    unit = LoadStore(get_config(config).replace(stash=bool(stash)))
    run_bench(unit, "tb.tb_load_store", tmp_path, config=config, stash=stash, phases=6)
