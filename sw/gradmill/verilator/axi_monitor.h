// Watches one AXI4 port: rules of the manager, bytes that really crossed, overlapping traffic.
// It shares nothing with the memory that answers, and sees only pins.
#pragma once
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "axi_pins.h"

// First broken rule of the whole board, as text for the user.
struct Verdict {
    char text[256] = "";
    uint64_t cycle = 0;

    void fail(const char* tier, const char* rule, uint64_t address) {
        if (text[0]) return;
        snprintf(text, sizeof text, "%s port, cycle %" PRIu64 ": %s (address 0x%" PRIx64 ")", tier,
                 cycle, rule, address);
    }
};

struct Traffic {
    uint64_t read_bytes = 0, write_bytes = 0, read_bursts = 0, write_bursts = 0;
    uint64_t overlaps = 0;  // bursts that meet an unfinished burst of the other direction
};

template <class Pins> class Monitor {
    struct Request {
        uint64_t id, addr, len, size, burst;
        bool operator!=(const Request& o) const {
            return id != o.id || addr != o.addr || len != o.len || size != o.size
                   || burst != o.burst;
        }
        uint64_t end(uint64_t beat) const { return addr + (len + 1) * beat; }
    };

public:
    Traffic traffic;

    Monitor(const Pins& pins, const char* tier, Verdict& verdict)
        : p_(pins), tier_(tier), verdict_(verdict) {}

    void reset() {
        reads_.clear();
        writes_.clear();
        answers_.clear();
        w_beats_ = 0;
        ar_held_ = aw_held_ = w_held_ = false;
    }

    // Called once a cycle, when all pins have settled and before the clock edge.
    void sample() {
        address_channels();
        write_data();
        if (p_.rvalid && p_.rready) {
            traffic.read_bytes += BEAT;
            if (p_.rlast) reads_.pop();
        }
        if (p_.bvalid && p_.bready) answers_.pop();
    }

private:
    static constexpr uint64_t BEAT = sizeof(std::remove_reference_t<decltype(Pins::wdata)>);

    void check(const Request& r) {
        if (r.burst != 1) verdict_.fail(tier_, "burst is not INCR", r.addr);
        if ((1ull << r.size) != BEAT) verdict_.fail(tier_, "beat size is not the bus", r.addr);
        if (r.addr % BEAT) verdict_.fail(tier_, "address is not aligned to a beat", r.addr);
        if (r.addr >> 12 != (r.end(BEAT) - 1) >> 12)
            verdict_.fail(tier_, "burst crosses 4 KB", r.addr);
    }

    void meet(const Request& r, Ring<Request>& others) {
        for (size_t i = 0; i < others.size(); ++i)
            if (r.addr < others[i].end(BEAT) && others[i].addr < r.end(BEAT)) {
                ++traffic.overlaps;
                return;
            }
    }

    void address_channels() {
        const Request ar{p_.arid, p_.araddr, p_.arlen, p_.arsize, p_.arburst};
        if (ar_held_ && (!p_.arvalid || ar != ar_))
            verdict_.fail(tier_, "AR changed before ARREADY", ar_.addr);
        ar_held_ = p_.arvalid && !p_.arready;
        ar_ = ar;
        const Request aw{p_.awid, p_.awaddr, p_.awlen, p_.awsize, p_.awburst};
        if (aw_held_ && (!p_.awvalid || aw != aw_))
            verdict_.fail(tier_, "AW changed before AWREADY", aw_.addr);
        aw_held_ = p_.awvalid && !p_.awready;
        aw_ = aw;
        if (p_.arvalid && p_.arready) {
            check(ar);
            meet(ar, writes_);
            meet(ar, answers_);
            reads_.push(ar);
            ++traffic.read_bursts;
        }
        if (p_.awvalid && p_.awready) {
            check(aw);
            meet(aw, reads_);
            writes_.push(aw);
            ++traffic.write_bursts;
        }
    }

    void write_data() {
        if (w_held_ && (!p_.wvalid || last_ != p_.wlast
                        || memcmp(data_, bytes_of(p_.wdata), sizeof data_)
                        || memcmp(strobe_, bytes_of(p_.wstrb), sizeof strobe_)))
            verdict_.fail(tier_, "W changed before WREADY", writes_.empty() ? 0 : address());
        w_held_ = p_.wvalid && !p_.wready;
        if (w_held_) {
            last_ = p_.wlast;
            memcpy(data_, bytes_of(p_.wdata), sizeof data_);
            memcpy(strobe_, bytes_of(p_.wstrb), sizeof strobe_);
        }
        if (!(p_.wvalid && p_.wready)) return;
        if (writes_.empty()) return verdict_.fail(tier_, "W without AW", 0);
        for (size_t i = 0; i < sizeof strobe_; ++i)
            traffic.write_bytes += __builtin_popcount(bytes_of(p_.wstrb)[i]);
        const bool last = w_beats_ == writes_.front().len;
        if (last != bool(p_.wlast)) verdict_.fail(tier_, "WLAST is wrong", address());
        ++w_beats_;
        if (last) {
            answers_.push(writes_.front());
            writes_.pop();
            w_beats_ = 0;
        }
    }

    uint64_t address() { return writes_.front().addr + w_beats_ * BEAT; }

    Pins p_;
    const char* tier_;
    Verdict& verdict_;
    Ring<Request> reads_, writes_, answers_;
    Request ar_{}, aw_{};
    uint64_t w_beats_ = 0;
    bool ar_held_ = false, aw_held_ = false, w_held_ = false, last_ = false;
    uint8_t data_[BEAT];
    uint8_t strobe_[sizeof(std::remove_reference_t<decltype(Pins::wstrb)>)];
};
