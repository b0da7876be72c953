// What the forward and the backward of patch attention share: tiles in shared memory, exponentials, and the map of a
// WMMA accumulator. Shape letters: B images, H heads, N queries, M keys, d head size.
#pragma once

#ifndef CUDA_EMULATION
#include <cuda_fp16.h>
#include <mma.h>

// Every access to shared memory that is not WMMA's goes through these two, so that tests/csrc can watch it.
template <typename T>
__device__ __forceinline__ T read_shared(const T* from) { return *from; }
template <typename T>
__device__ __forceinline__ void write_shared(T* to, T value) { *to = value; }

// 2^x, 0 below 2^-126: one instruction whatever the compiler's flags; at most 2 units in the last place off.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The thread's index, the block's index, or x, as if new at each call: what follows from them is then computed where it
// is used and does not sit in registers through the loops in between.
__device__ __forceinline__ int thread_index() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}
__device__ __forceinline__ int block_index() {
    int x;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    return x;
}
__device__ __forceinline__ int anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}
#endif

namespace ipt_fast {

using namespace nvcuda;

constexpr unsigned kAllLanes = 0xffffffff;
constexpr int kVector = 8;  // halves a load: 16 bytes
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLowest = -3.0e38f;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// Pitch of a tile [rows, d] in halves. WMMA reads a row as 16-byte pieces where the fragment runs along d, and as four
// 8-byte pieces of different rows where it runs along the tokens; no pitch up to d + 8 is free of conflicts for both.
template <int d> constexpr int kPitchAlong = d + 8;               // fragments along d: q, k of the scores
template <int d> constexpr int kPitchAcross = d == 64 ? 80 : 48;  // fragments along the tokens: v of the outputs

using FragmentA = wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major>;
using FragmentAt = wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::col_major>;  // of the transpose of the tile
using FragmentB = wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major>;
using FragmentBt = wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major>;
using Sums = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;

// One head of a [B, tokens, H d] tensor by stride, or of a [tokens, H d] embedding (null: there is none).
struct Head {
    const __half* first;  // token 0
    long long row;        // halves from one token to the next
};

// ---- tiles -----------------------------------------------------------------------------------------------------

// A power of two of lanes a row, so that shifts find row and column; with d = 48 six of eight have something to load.
template <int d> constexpr int kLanesARow = d <= 32 ? 4 : 8;

__device__ __forceinline__ uint4 load_vector(const __half* from) { return *reinterpret_cast<const uint4*>(from); }

__device__ __forceinline__ unsigned add_halves(unsigned a, unsigned b) {
    // Packed half addition rounds once, as adding in float and rounding would: the same bits for a tenth of the work.
    const __half2 sum = __hadd2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
    return *reinterpret_cast<const unsigned*>(&sum);
}
__device__ __forceinline__ uint4 add_halves(uint4 a, uint4 b) {
    return uint4{add_halves(a.x, b.x), add_halves(a.y, b.y), add_halves(a.z, b.z), add_halves(a.w, b.w)};
}

// 8 halves from `column` on of n tokens, `step` apart from `token` on; zeros from token `count` on.
template <int n, int step>
__device__ __forceinline__ void fetch(uint4 (&x)[n], Head head, int token, int column, int count) {
    const __half* from = head.first + token * head.row + column;
    for (int i = 0; i < n; ++i, from += step * head.row)
        x[i] = token + i * step < count ? load_vector(from) : uint4{0, 0, 0, 0};
}
// The same plus an embedding, if there is one. All loads are under way before the first is waited for.
template <int n, int step>
__device__ __forceinline__ void fetch_sum(uint4 (&x)[n], Head head, Head embed, int token, int column, int count) {
    uint4 more[n];
    fetch<n, step>(x, head, token, column, count);
    if (embed.first == nullptr) return;
    fetch<n, step>(more, embed, token, column, count);
    for (int i = 0; i < n; ++i) x[i] = add_halves(x[i], more[i]);
}

// ---- probabilities ---------------------------------------------------------------------------------------------

// A probability p is held as the float p 2^-98: its bits are then those of the half p 2^14, 13 places to the left. So
// two of them become a pair of halves by two multiplications and a byte shuffle, where conversions run at a quarter of
// that rate, and what underflows is below 2^-28 and not below 2^-14. A nan does not survive: sums of rows carry it.
constexpr float kShiftLog2 = -98.0f;
constexpr float kHalfPerOne = 16384.0f;       // 2^14: what the halves stand too high
constexpr float kUnshift = 0x1p98f;

__device__ __forceinline__ unsigned pack_probabilities(float low, float high) {
    const unsigned a = __float_as_uint(low) * 8u + 0x8000u;  // rounds to nearest, ties up
    const unsigned b = __float_as_uint(high) * 8u + 0x8000u;
    return __byte_perm(a, b, 0x7632);
}

__device__ __forceinline__ unsigned pack_halves(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&pair);
}

// ---- the accumulator's map -------------------------------------------------------------------------------------

// Where this lane's eight elements lie in a 16 x 16 accumulator. CUDA leaves that open and GPUs differ, so it is read
// once a kernel from a tile of numbers. Taken for granted, and checked, is only what sm_70 to sm_90 have in common:
//   element        0 1       2 3       4 5       6 7
//   row          row[0]    row[1]    row[0]    row[1]
//   columns     column[0]           column[1]           and the one after
// and that four lanes share both rows. On a GPU that differs the kernel stops with an error.
struct AccumulatorMap {
    int packed;  // row[0], row[1], column[0], column[1], a byte each, and above all whether the lane leads its four
    int partner[2];   // lanes: the sum over these two exchanges is the sum over the four lanes of a row

    __device__ AccumulatorMap here() const { return {anew(packed), {partner[0], partner[1]}}; }
    __device__ int row(int i) const { return packed >> 8 * i & 15; }
    __device__ int column(int i) const { return packed >> (16 + 8 * i) & 15; }
    __device__ bool leads() const { return packed < 0; }
};

__device__ constexpr int row_of(int element) { return element / 2 % 2; }

// numbers: 256 floats of shared memory that nothing else uses; the block must meet at a barrier before they are.
template <int kThreads>
__device__ __forceinline__ AccumulatorMap learn_map(float* numbers) {
    for (int i = threadIdx.x, n = 0; n < 256 / kThreads; i += kThreads, ++n) write_shared(numbers + i, float(i));
    __syncthreads();
    Sums sums;
    wmma::load_matrix_sync(sums, numbers, 16, wmma::mem_row_major);
    const auto number = [&](int element) { return static_cast<int>(sums.x[element]); };

    AccumulatorMap map = {};
    for (int i = 0; i < 2; ++i) map.packed |= number(2 * i) / 16 << 8 * i | number(4 * i) % 16 << (16 + 8 * i);
    bool known = sums.num_elements == 8;
    for (int e = 0; e < 8; ++e)
        known &= number(e) == map.row(row_of(e)) * 16 + map.column(e / 4) + e % 2 && map.column(e / 4) % 2 == 0;

    unsigned left = __match_any_sync(kAllLanes, map.row(0));
    known &= __popc(left) == 4 && __match_any_sync(kAllLanes, map.row(1)) == left;
    const int lane = threadIdx.x % 32, position = __popc(left & ((1u << lane) - 1));
    for (int i = 0; i < 4; ++i, left &= left - 1) {
        const int member = __ffs(left) - 1;
        if (i == (position ^ 1)) map.partner[0] = member;
        if (i == (position ^ 2)) map.partner[1] = member;
    }
    if (position == 0) map.packed |= 1 << 31;
    if (!known) __trap();
    return map;
}

}  // namespace ipt_fast
