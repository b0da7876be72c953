// Enough of CUDA to run the kernels of csrc/ on a CPU, and to see what a GPU would not show.
//
// Every lane is a fiber of one host thread and runs until the lanes of its warp, or of its block, have to meet; which
// warp and lane goes on next is chosen by `order`. So a run is repeatable, and several orders of warps can be compared.
//   races      a shadow of shared memory knows who touched each word since which barrier
//   poison     shared memory starts as nan
//   layouts    which element of an accumulator a lane holds is a table: that of sm_70, of sm_80, or a shuffled one
//   faults     `skip_barrier` leaves out the barrier at one line of the source
//   counts     wavefronts of every access to shared memory, by line, as sm_70 would issue it
#pragma once
#define CUDA_EMULATION

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __align__(bytes)
#define __shared__

using __half = _Float16;
struct __half2 { __half x, y; };
struct float2 { float x, y; };
struct uint4 { std::uint32_t x, y, z, w; };
struct Place { unsigned x; };
inline Place threadIdx, blockIdx, blockDim;  // of the lane that runs

// The name by which the kernels know their dynamic shared memory.
namespace ipt_fast { alignas(128) inline unsigned char shared_memory[96 << 10]; }

// Line of the caller, 10,000 higher in a header.
inline int source_line(int line, const char* file) {
    const std::size_t length = std::strlen(file);
    return line + (file[length - 1] == 'h' ? 10'000 : 0);
}
#define CALLER source_line(__builtin_LINE(), __builtin_FILE())

// ---- fibers ----------------------------------------------------------------------------------------------------

enum class Wait { none, warp, block, done };
struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Wait wait = Wait::none;
};
struct Access { int line, ordinal; std::uint32_t address; int bytes; unsigned lane; bool write; };
struct Warp {
    int arrived = 0, meeting = 0;  // lanes that wait, and for which kind of meeting
    const void* argument[32];
    unsigned epoch = 1;            // barriers of this warp so far
    std::vector<Access> accesses;  // since the last meeting
    std::map<int, int> ordinals[32];
};
struct Count { long instructions = 0, split = 0, merged = 0; };

struct Machine {
    static constexpr std::size_t kStack = 192 << 10;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    ucontext_t scheduler;
    unsigned current = 0, epoch = 1;
    int order = 0, skip_barrier = 0;
    std::size_t shared_bytes = 0;
    std::mt19937 random;
    std::string error;
    bool counts = false;
    std::map<std::array<int, 3>, Count> by_line;  // line, bytes a lane, write
    std::function<void()> body;
    int row[32][8], column[32][8];  // of a lane's elements of an accumulator

    Warp& warp() { return warps[current / 32]; }
    unsigned lane() const { return current % 32; }
    void fail(const std::string& what) { if (error.empty()) error = what; }
    void pause(Wait wait) {
        lanes[current].wait = wait;
        const unsigned self = current;
        swapcontext(&lanes[self].context, &scheduler);
    }
    void stop(const std::string& what) {  // ends the run: nothing is resumed after it
        fail(what);
        pause(Wait::done);
    }
    void run(unsigned block, unsigned threads);
    void flush(Warp& warp);
};
inline Machine machine;

inline void fiber_main() {
    machine.body();
    machine.lanes[machine.current].wait = Wait::done;
    swapcontext(&machine.lanes[machine.current].context, &machine.scheduler);
}

inline void Machine::run(unsigned block, unsigned threads) {
    std::memset(ipt_fast::shared_memory, 0xff, sizeof ipt_fast::shared_memory);  // nan, in float and in half
    lanes.resize(threads);
    warps.assign(threads / 32, Warp{});
    ++epoch;
    for (Lane& lane : lanes) {
        if (!lane.stack) lane.stack = std::make_unique<char[]>(kStack);
        lane.wait = Wait::none;
        getcontext(&lane.context);
        lane.context.uc_stack = {lane.stack.get(), 0, kStack};
        makecontext(&lane.context, fiber_main, 0);
    }
    while (error.empty()) {
        // The first warp that can go on, the last one, or any: each lane of it until it has to wait.
        std::vector<unsigned> ready;
        for (unsigned w = 0; w < warps.size(); ++w)
            for (unsigned l = 0; l < 32; ++l)
                if (lanes[w * 32 + l].wait == Wait::none) {
                    ready.push_back(w);
                    break;
                }
        if (ready.empty()) break;
        const unsigned w = order == 0 ? ready.front() : order == 1 ? ready.back() : ready[random() % ready.size()];
        const unsigned turn = order == 0 ? 0 : order == 1 ? 31 : random() % 32;
        for (unsigned l = 0; l < 32 && error.empty(); ++l) {
            current = w * 32 + (l ^ turn);
            if (lanes[current].wait != Wait::none) continue;
            threadIdx = {current}, blockIdx = {block}, blockDim = {threads};
            swapcontext(&scheduler, &lanes[current].context);
        }
    }
    for (const Lane& lane : lanes)
        if (error.empty() && lane.wait != Wait::done) fail("deadlock: lanes wait for lanes that do not come");
    for (Warp& warp : warps) flush(warp);
}

// All lanes of the running warp meet; the last to come does `together` for all.
template <typename F>
void meet(int kind, const void* argument, F together) {
    Warp& warp = machine.warp();
    if (warp.arrived && warp.meeting != kind) return machine.stop("lanes of a warp meet in different instructions");
    warp.meeting = kind;
    warp.argument[machine.lane()] = argument;
    if (++warp.arrived < 32) return machine.pause(Wait::warp);
    warp.arrived = 0;
    machine.flush(warp);
    together(warp);
    const unsigned first = machine.current / 32 * 32;
    for (unsigned t = first; t < first + 32; ++t) machine.lanes[t].wait = Wait::none;
}

inline void __syncthreads(int line = CALLER) {
    if (line == machine.skip_barrier) return;
    unsigned waiting = 1;
    for (const Lane& lane : machine.lanes) waiting += lane.wait == Wait::block;
    if (waiting < machine.lanes.size()) return machine.pause(Wait::block);
    ++machine.epoch;
    for (Warp& warp : machine.warps) machine.flush(warp);
    for (Lane& lane : machine.lanes) lane.wait = Wait::none;
}
inline void __syncwarp(int line = CALLER) {
    if (line != machine.skip_barrier) meet(1, nullptr, [](Warp& warp) { ++warp.epoch; });
}
inline void __trap() { machine.stop("trap"); }

template <typename T, typename F>
T exchange(int kind, T value, F choose) {
    struct Slot { T in, out; } slot{value, value};
    meet(kind, &slot, [&](Warp& warp) {
        const auto at = [&](unsigned lane) { return static_cast<Slot*>(const_cast<void*>(warp.argument[lane])); };
        for (unsigned lane = 0; lane < 32; ++lane) at(lane)->out = choose(lane, at);
    });
    return slot.out;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return exchange(2, value, [=](unsigned lane, auto at) { return at(lane ^ mask)->in; });
}
inline float __shfl_sync(unsigned, float value, int from) {
    struct Slot { float in; int from; float out; } slot{value, from, 0};
    meet(3, &slot, [](Warp& warp) {
        const auto at = [&](unsigned lane) { return static_cast<Slot*>(const_cast<void*>(warp.argument[lane])); };
        for (unsigned lane = 0; lane < 32; ++lane) at(lane)->out = at(at(lane)->from & 31)->in;
    });
    return slot.out;
}
inline unsigned __match_any_sync(unsigned, int value) {
    return exchange(4, static_cast<unsigned>(value), [](unsigned lane, auto at) {
        unsigned same = 0;
        for (unsigned other = 0; other < 32; ++other) same |= unsigned(at(other)->in == at(lane)->in) << other;
        return same;
    });
}
inline bool __any_sync(unsigned, bool value) {
    return exchange(5, int(value), [](unsigned, auto at) {
        int any = 0;
        for (unsigned lane = 0; lane < 32; ++lane) any |= at(lane)->in;
        return any;
    });
}

// ---- shared memory ---------------------------------------------------------------------------------------------

constexpr unsigned kMany = ~0u;
struct Word {  // who wrote and who read it last: block epoch, warp, warp epoch, lane
    struct Touch { unsigned epoch = 0, warp = 0, warp_epoch = 0, lane = 0; } write, read;
};
inline Word shadow[sizeof ipt_fast::shared_memory / 4];

// lane kMany: an instruction of the whole warp.
inline void touch(const void* pointer, int bytes, bool write, unsigned lane, int line) {
    const auto at = static_cast<const unsigned char*>(pointer) - ipt_fast::shared_memory;
    if (at < 0 || at >= static_cast<long>(sizeof ipt_fast::shared_memory)) return;
    if (at + bytes > static_cast<long>(machine.shared_bytes)) machine.fail("outside of the shared memory asked for");
    const unsigned warp = machine.current / 32, warp_epoch = machine.warp().epoch;
    for (long word = at / 4; word < (at + bytes + 3) / 4; ++word) {
        const auto clashes = [&](const Word::Touch& other) {
            if (other.epoch != machine.epoch) return false;
            if (other.warp != warp) return true;
            return other.warp_epoch == warp_epoch && (other.lane != lane || lane == kMany);
        };
        Word& w = shadow[word];
        if (clashes(w.write) || (write && clashes(w.read)))
            machine.fail("race at line " + std::to_string(line) + ", byte " + std::to_string(word * 4));
        if (write) {
            w.write = {machine.epoch, warp, warp_epoch, lane};
            continue;
        }
        const bool fresh = w.read.epoch != machine.epoch;
        const bool other_warp = !fresh && w.read.warp != warp, other_lane = !fresh && w.read.lane != lane;
        const bool same_warp_epoch = !fresh && w.read.warp_epoch == warp_epoch;
        w.read = {machine.epoch, other_warp ? kMany : warp, warp_epoch, other_lane && same_warp_epoch ? kMany : lane};
    }
}

inline void note(const void* pointer, int bytes, unsigned lane, int line, bool write) {
    const auto at = static_cast<const unsigned char*>(pointer) - ipt_fast::shared_memory;
    if (!machine.counts || at < 0 || at >= static_cast<long>(sizeof ipt_fast::shared_memory)) return;
    Warp& warp = machine.warp();
    warp.accesses.push_back({line, warp.ordinals[lane][line]++, static_cast<std::uint32_t>(at), bytes, lane, write});
}

// Lanes that touch shared memory in one instruction take as many wavefronts as the busiest bank has different words:
// split, 16 bytes a lane are served by quarters of the warp and 8 bytes by halves; merged, over the whole warp.
inline void Machine::flush(Warp& warp) {
    if (!counts || warp.accesses.empty()) return;
    std::map<std::pair<int, int>, std::vector<Access>> instructions;
    for (const Access& a : warp.accesses) instructions[{a.line, a.ordinal}].push_back(a);
    for (const auto& [key, list] : instructions) {
        const auto wavefronts = [&](unsigned lanes) {
            long total = 0;
            for (unsigned phase = 0; phase < 32; phase += lanes) {
                std::set<std::uint32_t> banks[32];
                for (const Access& a : list)
                    if (a.lane >= phase && a.lane < phase + lanes)
                        for (std::uint32_t w = a.address / 4; w < (a.address + a.bytes + 3) / 4; ++w)
                            banks[w % 32].insert(w);
                std::size_t most = 0;
                for (const auto& bank : banks) most = std::max(most, bank.size());
                total += static_cast<long>(most);
            }
            return total;
        };
        const int bytes = list.front().bytes;
        Count& count = by_line[{key.first, bytes, list.front().write}];
        ++count.instructions;
        count.split += wavefronts(bytes == 16 ? 8 : bytes == 8 ? 16 : 32);
        count.merged += wavefronts(32);
    }
    warp.accesses.clear();
    for (auto& ordinals : warp.ordinals) ordinals.clear();
}

template <typename T>
T read_shared(const T* from, int line = CALLER) {
    touch(from, sizeof(T), false, machine.lane(), line);
    note(from, sizeof(T), machine.lane(), line, false);
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <typename T>
void write_shared(T* to, T value, int line = CALLER) {
    touch(to, sizeof(T), true, machine.lane(), line);
    note(to, sizeof(T), machine.lane(), line, true);
    std::memcpy(static_cast<void*>(to), &value, sizeof value);
}

// ---- arithmetic ------------------------------------------------------------------------------------------------

inline float __uint_as_float(std::uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline std::uint32_t __float_as_uint(float x) { std::uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float2 __half22float2(__half2 x) { return {static_cast<float>(x.x), static_cast<float>(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {static_cast<__half>(x), static_cast<__half>(y)}; }
inline __half2 __hadd2(__half2 a, __half2 b) {
    return __floats2half2_rn(static_cast<float>(a.x) + static_cast<float>(b.x),
                             static_cast<float>(a.y) + static_cast<float>(b.y));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline std::uint32_t __byte_perm(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    const std::uint64_t bytes = a | static_cast<std::uint64_t>(b) << 32;
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i)
        result |= static_cast<std::uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
// The hardware's is at most 2 units in the last place off; so is this, and it is 0 where the result is denormal.
inline float exp2_fast(float x) {
    const float y = std::exp2(x);
    if (y != y) return __uint_as_float(0x7fffffff);  // the GPU's nan
    return y < 0x1p-126f ? 0.0f : __uint_as_float(__float_as_uint(y) + (y < 1e38f && __float_as_uint(x) % 3 == 0));
}

inline int thread_index() { return static_cast<int>(threadIdx.x); }
inline int anew(int x) { return x; }
inline int block_index() { return static_cast<int>(blockIdx.x); }

// ---- WMMA ------------------------------------------------------------------------------------------------------

namespace nvcuda::wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

// Operands: lane 0 holds the whole, in float. Accumulators: eight elements a lane, by the machine's table.
template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment { float x[16][16]; };
template <int m, int n, int k>
struct fragment<accumulator, m, n, k, float, void> {
    static constexpr int num_elements = 8;
    float x[8];
};
using Accumulator = fragment<accumulator, 16, 16, 16, float>;

template <typename Use, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, __half, Layout>& f, const __half* from, int pitch,
                      int line = CALLER) {
    if (pitch < 16 || pitch % 8 || reinterpret_cast<std::uintptr_t>(from) % 32)
        machine.fail("WMMA: a pitch or a pointer that it does not take");
    if (machine.lane()) return;
    constexpr bool transposed = std::is_same_v<Layout, col_major>;
    for (int i = 0; i < 16; ++i) {
        touch(from + i * pitch, 32, false, kMany, line);
        for (int j = 0; j < 16; ++j) (transposed ? f.x[j][i] : f.x[i][j]) = static_cast<float>(from[i * pitch + j]);
    }
    // How sm_70's code reads it (from its disassembly): 2 times 16 bytes of a row, or 4 times 8 bytes of four rows.
    constexpr bool left = std::is_same_v<Use, matrix_a>;
    for (int part = 0; part < (left != transposed ? 2 : 4); ++part)
        for (unsigned l = 0; l < 32; ++l) {
            const int outer = (left ? (l >> 2 & 1) : (l >> 3 & 1)) * 8 + (l >> 4) * 4, inner = l & 3;
            if (left != transposed) note(from + (outer + inner) * pitch + part * 8, 16, l, line, false);
            else note(from + (inner + part * 4) * pitch + outer, 8, l, line, false);
        }
}

inline void note_accumulator(const float* at, int pitch, int line, bool write) {
    for (int pair = 0; pair < 4; ++pair)
        for (unsigned l = 0; l < 32; ++l) {
            const int row = (l & 16) / 4 + (l & 4) * 2 + (l & 1) + pair % 2 * 2;
            const int column = (l & 8) + (l & 2) + pair / 2 * 4;
            note(at + row * pitch + column, 8, l, line, write);
        }
}
inline void check_accumulator(const float* at, int pitch) {
    if (pitch < 16 || pitch % 4 || reinterpret_cast<std::uintptr_t>(at) % 32)
        machine.fail("WMMA: a pitch or a pointer that it does not take");
}
inline void load_matrix_sync(Accumulator& f, const float* from, int pitch, layout_t, int line = CALLER) {
    check_accumulator(from, pitch);
    const unsigned lane = machine.lane();
    for (int i = 0; i < 16 && lane == 0; ++i) touch(from + i * pitch, 64, false, kMany, line);
    for (int e = 0; e < 8; ++e) f.x[e] = from[machine.row[lane][e] * pitch + machine.column[lane][e]];
    if (lane == 0) note_accumulator(from, pitch, line, false);
}
inline void store_matrix_sync(float* to, const Accumulator& f, int pitch, layout_t, int line = CALLER) {
    check_accumulator(to, pitch);
    const unsigned lane = machine.lane();
    for (int i = 0; i < 16 && lane == 0; ++i) touch(to + i * pitch, 64, true, kMany, line);
    for (int e = 0; e < 8; ++e) to[machine.row[lane][e] * pitch + machine.column[lane][e]] = f.x[e];
    if (lane == 0) note_accumulator(to, pitch, line, true);
}
inline void fill_fragment(Accumulator& f, float value) { std::fill(f.x, f.x + 8, value); }

template <typename A, typename B>
void mma_sync(Accumulator& d, const A& a, const B& b, const Accumulator& c) {
    struct Operands { Accumulator* d; const Accumulator* c; const A* a; const B* b; } mine{&d, &c, &a, &b};
    meet(6, &mine, [](Warp& warp) {
        const auto at = [&](int lane) { return static_cast<const Operands*>(warp.argument[lane]); };
        float sums[16][16];
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 8; ++e) sums[machine.row[lane][e]][machine.column[lane][e]] = at(lane)->c->x[e];
        const auto& left = at(0)->a->x;
        const auto& right = at(0)->b->x;
        for (int i = 0; i < 16; ++i)
            for (int l = 0; l < 16; ++l)
                for (int j = 0; j < 16; ++j) sums[i][j] += left[i][l] * right[l][j];
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 8; ++e) at(lane)->d->x[e] = sums[machine.row[lane][e]][machine.column[lane][e]];
    });
}
}  // namespace nvcuda::wmma

// layout 0: sm_70's. 1: sm_80's. From 2 on: rows, columns (in pairs) and lanes shuffled by that seed. -1: pairs torn.
inline void set_layout(int layout) {
    int rows[16], pairs[8], lanes[32];
    for (int i = 0; i < 32; ++i) lanes[i] = i, rows[i % 16] = i % 16, pairs[i % 8] = i % 8;
    std::mt19937 random(layout);
    if (layout >= 2) {
        std::shuffle(rows, rows + 16, random);
        std::shuffle(pairs, pairs + 8, random);
        std::shuffle(lanes, lanes + 32, random);
    }
    for (int l = 0; l < 32; ++l)
        for (int e = 0; e < 8; ++e) {
            const bool volta = layout == 0 || layout == -1 || layout % 2;
            const int row = volta ? (l & 16) / 4 + (l & 4) * 2 + (l & 1) + e / 2 % 2 * 2 : l / 4 + e / 2 % 2 * 8;
            const int column = volta ? (l & 8) + (l & 2) + e / 4 * 4 : l % 4 * 2 + e / 4 * 8;
            machine.row[lanes[l]][e] = rows[row];
            machine.column[lanes[l]][e] = pairs[column / 2] * 2 + e % 2;
        }
    if (layout == -1)
        for (int e = 0; e < 8; e += 2) std::swap(machine.column[0][e], machine.column[2][e]);
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, unsigned blocks, unsigned threads, std::size_t shared_bytes, Args... args) {
    machine.error.clear();
    machine.by_line.clear();
    machine.shared_bytes = shared_bytes;
    machine.body = [&] { kernel(args...); };
    for (unsigned block = 0; block < blocks && machine.error.empty(); ++block) machine.run(block, threads);
}
