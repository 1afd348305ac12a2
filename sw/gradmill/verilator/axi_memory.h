// One AXI4 memory over the host's bytes: latency, bandwidth, outstanding bursts, random stalls on
// every channel and error responses on request.
#pragma once
#include <cstring>

#include "axi_pins.h"

enum Channel { AR, R, AW, W, B, CHANNELS };
constexpr uint8_t OKAY = 0, DECERR = 3;

// Mirrors `_Timing` of backend.py.
struct Timing {
    uint32_t read_latency, write_latency;  // cycles from AR to the first R, from last W to B
    uint32_t beats, cycles;                // at most `beats` in `cycles`, both directions; 0: any
    uint32_t outstanding;                  // bursts accepted before their data, each direction
    uint32_t stall[CHANNELS];              // chance in 4096 that a channel pauses for a cycle
    uint64_t seed;
};

struct Fault {
    uint64_t first, last;  // bytes
    uint8_t writes, resp;
};

template <class Pins> class Memory {
    struct Burst {
        uint64_t addr, id, left, due;
        uint8_t resp;
    };

public:
    static constexpr size_t MAX_FAULTS = 8;
    uint8_t* data;
    uint64_t size;
    Timing timing{};
    Fault faults[MAX_FAULTS];
    size_t fault_count = 0;

    Memory(const Pins& pins, uint8_t* memory, uint64_t bytes)
        : data(memory), size(bytes), p_(pins) {}

    void configure(const Timing& t) {
        timing = t;
        random_ = t.seed * 2 + 1;
        stalls_ = false;
        for (uint32_t chance : t.stall) stalls_ |= chance != 0;
    }

    void reset() {
        reads_.clear();
        writes_.clear();
        answers_.clear();
        p_.arready = p_.rvalid = p_.awready = p_.wready = p_.bvalid = 0;
    }

    // Transfers of the cycle that ends with the coming edge; `cycle` is its number.
    void sample(uint64_t cycle) {
        if (p_.rvalid && p_.rready) {
            p_.rlast ? reads_.pop() : void(reads_.front().addr += BEAT);
            took_r_ = true;
        }
        if (p_.arvalid && p_.arready)
            reads_.push({p_.araddr, p_.arid, p_.arlen + 1u, cycle + timing.read_latency, OKAY});
        if (p_.bvalid && p_.bready) {
            answers_.pop();
            took_b_ = true;
        }
        if (p_.wvalid && p_.wready) write(cycle);
        if (p_.awvalid && p_.awready)
            writes_.push({p_.awaddr, p_.awid, p_.awlen + 1u, 0, OKAY});
    }

    // Pins of the next cycle.
    void drive(uint64_t cycle) {
        const uint64_t dice = stalls_ ? roll() : ~0ull;
        const auto go = [&](Channel c) { return (dice >> (12 * c) & 0xfff) >= timing.stall[c]; };
        credit_ += timing.beats;
        if (credit_ > int64_t(timing.cycles) + timing.beats)
            credit_ = int64_t(timing.cycles) + timing.beats;
        const bool bandwidth = !timing.beats || credit_ >= int64_t(timing.cycles);

        p_.arready = reads_.size() < timing.outstanding && go(AR);
        p_.awready = writes_.size() + answers_.size() < timing.outstanding && go(AW);
        p_.wready = !writes_.empty() && bandwidth && go(W);
        if (took_r_ || !p_.rvalid) {
            p_.rvalid = !reads_.empty() && reads_.front().due <= cycle && bandwidth && go(R);
            if (p_.rvalid) read();
        }
        if (took_b_ || !p_.bvalid) {
            p_.bvalid = !answers_.empty() && answers_.front().due <= cycle && go(B);
            if (p_.bvalid) {
                p_.bid = answers_.front().id;
                p_.bresp = answers_.front().resp;
            }
        }
        took_r_ = took_b_ = false;
    }

private:
    static constexpr uint64_t BEAT = sizeof(std::remove_reference_t<decltype(Pins::wdata)>);

    uint64_t roll() {  // xorshift
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        return random_;
    }

    uint8_t response(uint64_t addr, bool writes) const {
        if (addr + BEAT > size) return DECERR;
        for (size_t i = 0; i < fault_count; ++i)
            if (faults[i].writes == writes && addr <= faults[i].last
                && faults[i].first < addr + BEAT)
                return faults[i].resp;
        return OKAY;
    }

    void read() {
        Burst& burst = reads_.front();
        p_.rid = burst.id;
        p_.rresp = response(burst.addr, false);
        p_.rlast = --burst.left == 0;
        if (p_.rresp == OKAY)
            memcpy(bytes_of(p_.rdata), data + burst.addr, BEAT);
        else
            memset(bytes_of(p_.rdata), 0xa5, BEAT);
        credit_ -= timing.cycles;
    }

    void write(uint64_t cycle) {
        Burst& burst = writes_.front();
        const uint8_t resp = response(burst.addr, true);
        if (resp == OKAY)
            for (size_t i = 0; i < BEAT; ++i) {
                if (bit_of(p_.wstrb, i)) data[burst.addr + i] = bytes_of(p_.wdata)[i];
            }
        else
            burst.resp = resp;
        burst.addr += BEAT;
        credit_ -= timing.cycles;
        if (--burst.left) return;
        burst.due = cycle + timing.write_latency;
        answers_.push(burst);
        writes_.pop();
    }

    Pins p_;
    Ring<Burst> reads_, writes_, answers_;
    uint64_t random_ = 1;
    int64_t credit_ = 0;
    bool stalls_ = false, took_r_ = false, took_b_ = false;
};
