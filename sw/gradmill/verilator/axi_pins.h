// The pins of one AXI4 port of the model, for any data width: every pin is a reference to the
// model's own variable, wide ones are arrays of words in little-endian order.
#pragma once
#include <cstddef>
#include <cstdint>

#include "Vgradmill.h"

#define GRADMILL_AXI_PINS(X, tier)                                                              \
    X(tier, awid) X(tier, awaddr) X(tier, awlen) X(tier, awsize) X(tier, awburst)               \
    X(tier, awvalid) X(tier, awready) X(tier, wdata) X(tier, wstrb) X(tier, wlast)              \
    X(tier, wvalid) X(tier, wready) X(tier, bid) X(tier, bresp) X(tier, bvalid) X(tier, bready) \
    X(tier, arid) X(tier, araddr) X(tier, arlen) X(tier, arsize) X(tier, arburst)               \
    X(tier, arvalid) X(tier, arready) X(tier, rid) X(tier, rdata) X(tier, rresp)                \
    X(tier, rlast) X(tier, rvalid) X(tier, rready)

#define GRADMILL_PIN(tier, pin) decltype(Vgradmill::m_axi_##tier##_##pin)& pin;
#define GRADMILL_BIND(tier, pin) top.m_axi_##tier##_##pin,

struct NearPins { GRADMILL_AXI_PINS(GRADMILL_PIN, near) };
struct FarPins { GRADMILL_AXI_PINS(GRADMILL_PIN, far) };

inline NearPins near_pins(Vgradmill& top) { return {GRADMILL_AXI_PINS(GRADMILL_BIND, near)}; }
inline FarPins far_pins(Vgradmill& top) { return {GRADMILL_AXI_PINS(GRADMILL_BIND, far)}; }

template <class Pin> uint8_t* bytes_of(Pin& pin) { return reinterpret_cast<uint8_t*>(&pin); }

// Bytes of one beat on a port.
template <class Pins> constexpr size_t beat_bytes(const Pins&) {
    return sizeof(std::remove_reference_t<decltype(Pins::wdata)>);
}

template <class Pin> bool bit_of(Pin& pin, size_t index) {
    return bytes_of(pin)[index / 8] >> (index % 8) & 1;
}

// A queue of fixed room: the clock loop never touches the heap.
template <class Item> class Ring {
public:
    static constexpr size_t ROOM = 256;
    size_t size() const { return tail_ - head_; }
    bool empty() const { return head_ == tail_; }
    Item& front() { return items_[head_ % ROOM]; }
    Item& operator[](size_t index) { return items_[(head_ + index) % ROOM]; }
    void push(const Item& item) { items_[tail_++ % ROOM] = item; }
    void pop() { ++head_; }
    void clear() { head_ = tail_ = 0; }

private:
    Item items_[ROOM];
    size_t head_ = 0, tail_ = 0;
};
