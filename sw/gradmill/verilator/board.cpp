// The board around the simulated device: clock, reset, host port, two memories, bus monitors.
// Everything runs in the host's process, behind a C interface.
#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "axi_memory.h"
#include "axi_monitor.h"
#include "verilated.h"
#if GRADMILL_WAVE == 1
#include "verilated_vcd_c.h"
using Wave = VerilatedVcdC;
#elif GRADMILL_WAVE == 2
#include "verilated_fst_c.h"
using Wave = VerilatedFstC;
#endif

namespace {

constexpr int RESET_CYCLES = 8;
constexpr int HOST_TIMEOUT = 10000;  // cycles for one register access

// What began and ended in a cycle: 32 bits of the port `activity`, from bit 32 * index up.
struct Event {
    uint64_t cycle;
    uint32_t index;
    uint32_t bits;
};

template <class Port> uint32_t word(const Port& port, size_t index) {
    if constexpr (std::is_integral_v<Port>) return static_cast<uint64_t>(port) >> (32 * index);
    else return port[index];
}

template <class Top, class = void> struct Reports : std::false_type {};
template <class Top>
struct Reports<Top, std::void_t<decltype(std::declval<Top&>().activity)>> : std::true_type {};

// Appends what `top` reports, if it has the port.
template <class Top> void record(Top& top, uint64_t cycle, std::vector<Event>& events) {
    if constexpr (Reports<Top>::value) {
        using Port = std::remove_reference_t<decltype(top.activity)>;
        for (size_t i = 0; i < (sizeof(Port) + 3) / 4; ++i)
            if (const uint32_t bits = word(top.activity, i))
                events.push_back({cycle, static_cast<uint32_t>(i), bits});
    }
}

class Board {
    VerilatedContext context_;
    Vgradmill top_{&context_, "gradmill"};
#if GRADMILL_WAVE
    std::unique_ptr<Wave> wave_;
#endif

public:
    Memory<NearPins> near;
    Memory<FarPins> far;
    Monitor<NearPins> near_monitor;
    Monitor<FarPins> far_monitor;
    Verdict verdict;
    uint64_t cycles = 0;
    bool recording = false;
    std::vector<Event> events;

    Board(uint8_t* near_data, uint64_t near_size, uint8_t* far_data, uint64_t far_size,
          const char* wave)
        : near(near_pins(top_), near_data, near_size), far(far_pins(top_), far_data, far_size),
          near_monitor(near_pins(top_), "near", verdict),
          far_monitor(far_pins(top_), "far", verdict) {
        context_.fatalOnError(false);
#if GRADMILL_WAVE
        if (wave) {
            context_.traceEverOn(true);
            wave_.reset(new Wave);
            top_.trace(wave_.get(), 99);
            wave_->open(wave);
        }
#else
        (void)wave;
#endif
    }

    ~Board() {
#if GRADMILL_WAVE
        if (wave_) wave_->close();
#endif
        top_.final();
    }

    bool irq() const { return top_.irq; }
    bool broken() const { return verdict.text[0] || context_.gotError() || context_.gotFinish(); }

    void reset() {
        top_.s_axil_awvalid = top_.s_axil_wvalid = top_.s_axil_arvalid = 0;
        top_.s_axil_bready = top_.s_axil_rready = 0;
        top_.rst = 1;
        for (int i = 0; i < RESET_CYCLES; ++i) {
            near.reset();
            far.reset();
            settle();
            edge();
        }
        near_monitor.reset();
        far_monitor.reset();
        top_.rst = 0;
    }

    void cycle() {
        settle();
        verdict.cycle = cycles;
        near_monitor.sample();
        far_monitor.sample();
        near.sample(cycles);
        far.sample(cycles);
        if (recording) record(top_, cycles, events);
        edge();
        near.drive(cycles);
        far.drive(cycles);
    }

    // Runs until the interrupt, a broken rule or `limit` cycles.
    uint64_t run(uint64_t limit) {
        uint64_t done = 0;
        while (done < limit && !irq() && !broken()) {
            cycle();
            ++done;
        }
        return done;
    }

    int write(uint32_t address, uint32_t value) {
        top_.s_axil_awaddr = address;
        top_.s_axil_wdata = value;
        top_.s_axil_wstrb = 0xf;
        top_.s_axil_awvalid = top_.s_axil_wvalid = top_.s_axil_bready = 1;
        for (int i = 0; i < HOST_TIMEOUT; ++i) {
            settle();
            const bool aw = top_.s_axil_awvalid && top_.s_axil_awready;
            const bool w = top_.s_axil_wvalid && top_.s_axil_wready;
            const bool b = top_.s_axil_bvalid;
            const int resp = top_.s_axil_bresp;
            cycle();
            if (aw) top_.s_axil_awvalid = 0;
            if (w) top_.s_axil_wvalid = 0;
            if (b) {
                top_.s_axil_bready = 0;
                return resp;
            }
        }
        return -1;
    }

    int read(uint32_t address, uint32_t* value) {
        top_.s_axil_araddr = address;
        top_.s_axil_arvalid = top_.s_axil_rready = 1;
        for (int i = 0; i < HOST_TIMEOUT; ++i) {
            settle();
            const bool ar = top_.s_axil_arvalid && top_.s_axil_arready;
            const bool r = top_.s_axil_rvalid;
            const int resp = top_.s_axil_rresp;
            *value = top_.s_axil_rdata;
            cycle();
            if (ar) top_.s_axil_arvalid = 0;
            if (r) {
                top_.s_axil_rready = 0;
                return resp;
            }
        }
        return -1;
    }

private:
    void settle() {
        top_.clk = 0;
        top_.eval();
        dump();
    }

    void edge() {
        top_.clk = 1;
        top_.eval();
        dump();
        ++cycles;
    }

    void dump() {
#if GRADMILL_WAVE
        if (wave_) wave_->dump(context_.time());
#endif
        context_.timeInc(5);
    }
};

template <class Memory> int add_fault(Memory& memory, const Fault& fault) {
    if (memory.fault_count == memory.MAX_FAULTS) return -1;
    memory.faults[memory.fault_count++] = fault;
    return 0;
}

}  // namespace

extern "C" {

uint32_t board_beat_bytes() { return sizeof(std::remove_reference_t<decltype(NearPins::wdata)>); }

Board* board_new(uint8_t* near, uint64_t near_size, uint8_t* far, uint64_t far_size,
                 const char* wave) {
    return new Board(near, near_size, far, far_size, wave);
}

void board_free(Board* board) { delete board; }
void board_reset(Board* board) { board->reset(); }

void board_timing(Board* board, int tier, const Timing* timing) {
    tier ? board->far.configure(*timing) : board->near.configure(*timing);
}

int board_fault(Board* board, int tier, const Fault* fault) {
    return tier ? add_fault(board->far, *fault) : add_fault(board->near, *fault);
}

void board_clear_faults(Board* board) { board->near.fault_count = board->far.fault_count = 0; }

int board_write(Board* board, uint32_t address, uint32_t value) {
    return board->write(address, value);
}

int board_read(Board* board, uint32_t address, uint32_t* value) {
    return board->read(address, value);
}

uint64_t board_run(Board* board, uint64_t limit) { return board->run(limit); }

void board_idle(Board* board, uint64_t count) {
    while (count--) board->cycle();
}

// Records what begins and ends from now on, or no longer.
void board_record(Board* board, int on) { board->recording = on; }
uint64_t board_event_count(Board* board) { return board->events.size(); }

// Hands the recorded events over and forgets them.
void board_take_events(Board* board, Event* events) {
    std::copy(board->events.begin(), board->events.end(), events);
    board->events.clear();
}

int board_irq(Board* board) { return board->irq(); }
uint64_t board_cycles(Board* board) { return board->cycles; }

void board_traffic(Board* board, int tier, Traffic* traffic) {
    *traffic = tier ? board->far_monitor.traffic : board->near_monitor.traffic;
}

// The first broken rule, or an empty string.
const char* board_verdict(Board* board) {
    if (!board->verdict.text[0] && board->broken()) return "the model stopped itself";
    return board->verdict.text;
}
}
