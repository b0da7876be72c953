// Attention with additive query and key embeddings, forward, for GPUs whose tensor cores Triton does not reach (sm_70).
// Per head: out = softmax((q + q_embed)(k + k_embed)^T scale) v, in half precision with float32 sums, head size 48.
//
// B images, H heads, N queries, M keys. WMMA products of 16x16x16: 48 = 3 x 16, nothing is padded.
// One block: 64 queries of one head of one image, a warp for each 16 of them, and the keys 64 at a time, twice:
//   pass 1  highest score and sum of exponentials of every row
//   pass 2  the scores again, now turned into probabilities, times v
// The output is never rescaled, which the opaque layout of WMMA's accumulators would send through shared memory; the
// products of pass 1 cost less than that. 31 KB of shared memory: three blocks fit on an sm_70 multiprocessor.

#ifndef CUDA_EMULATION
#include <cuda_fp16.h>
#include <mma.h>
#endif

namespace ipt_fast {

using namespace nvcuda;

constexpr int kHead = 48;       // d
constexpr int kRows = 64;       // queries a block, keys a tile
constexpr int kWarps = 4;       // 16 queries each
constexpr int kThreads = 32 * kWarps;
constexpr int kPitch = 56;      // of a tile of heads in halves: 112 bytes, so that rows start in different banks
constexpr int kScorePitch = 68; // of a tile of scores in floats
constexpr int kVector = 8;      // halves a load
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLowest = -3.0e38f;

struct Head {          // one head of a [B, N, D] tensor by stride, dense rows of 48 halves
    const __half* rows;
    long row;          // halves from one token to the next
};

using FragmentA = wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major>;
using FragmentK = wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major>;  // k^T
using FragmentV = wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major>;
using Sums = wmma::fragment<wmma::accumulator, 16, 16, 16, float>;

// 64 tokens from `first` on, plus their embeddings where there are any -> tile [64, 48] of pitch kPitch.
__device__ void load_tile(__half* tile, Head head, Head embed, int first) {
    constexpr int kVectors = kHead / kVector;
    for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
        const int row = i / kVectors, column = i % kVectors * kVector;
        __align__(16) __half values[kVector];
        *reinterpret_cast<uint4*>(values) =
            *reinterpret_cast<const uint4*>(head.rows + (first + row) * head.row + column);
        if (embed.rows != nullptr) {
            __align__(16) __half more[kVector];
            *reinterpret_cast<uint4*>(more) =
                *reinterpret_cast<const uint4*>(embed.rows + (first + row) * embed.row + column);
            for (int j = 0; j < kVector; ++j)
                values[j] = __float2half(__half2float(values[j]) + __half2float(more[j]));
        }
        *reinterpret_cast<uint4*>(tile + row * kPitch + column) = *reinterpret_cast<uint4*>(values);
    }
}

// q [16, 48] of this warp times k^T [48, 64] -> scores [16, 64] of this warp.
__device__ void multiply_scores(float* scores, const FragmentA* q, const __half* k) {
    for (int j = 0; j < kRows / 16; ++j) {
        Sums sums;
        wmma::fill_fragment(sums, 0.0f);
        for (int c = 0; c < kHead / 16; ++c) {
            FragmentK part;
            wmma::load_matrix_sync(part, k + j * 16 * kPitch + c * 16, kPitch);
            wmma::mma_sync(sums, q[c], part, sums);
        }
        wmma::store_matrix_sync(scores + j * 16, sums, kScorePitch, wmma::mem_row_major);
    }
    __syncwarp();
}

__global__ void __launch_bounds__(kThreads)
forward_kernel(const __half* q, const __half* k, const __half* v, const __half* q_embed, const __half* k_embed,
               __half* out, float* lse, int H, int N, int M, long q_batch, long q_row, long k_batch, long k_row,
               long v_batch, long v_row, long q_embed_row, long k_embed_row, float scale) {
    __shared__ __align__(32) __half q_or_v[kRows * kPitch];
    __shared__ __align__(32) __half k_tile[kRows * kPitch];
    __shared__ __align__(32) float all_scores[kWarps * 16 * kScorePitch];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int b = blockIdx.y / H, h = blockIdx.y % H, first = blockIdx.x * kRows;
    const Head q_head = {q + b * q_batch + h * kHead, q_row};
    const Head k_head = {k + b * k_batch + h * kHead, k_row};
    const Head v_head = {v + b * v_batch + h * kHead, v_row};
    const Head q_added = {q_embed == nullptr ? nullptr : q_embed + h * kHead, q_embed_row};
    const Head k_added = {k_embed == nullptr ? nullptr : k_embed + h * kHead, k_embed_row};
    const Head none = {nullptr, 0};
    float* scores = all_scores + warp * 16 * kScorePitch;

    // Two lanes for each of the warp's 16 rows, with every second score: neighbours read different banks.
    const int row = lane / 2, side = lane % 2;
    const float unit = scale * kLog2E;

    load_tile(q_or_v, q_head, q_added, first);
    __syncthreads();
    FragmentA q_parts[kHead / 16];
    for (int c = 0; c < kHead / 16; ++c)
        wmma::load_matrix_sync(q_parts[c], q_or_v + warp * 16 * kPitch + c * 16, kPitch);

    float top = kLowest, total = 0.0f;  // of this lane's scores so far, in units of log2
    for (int key = 0; key < M; key += kRows) {
        __syncthreads();  // the tile before has been used
        load_tile(k_tile, k_head, k_added, key);
        __syncthreads();
        multiply_scores(scores, q_parts, k_tile);
        float values[kRows / 2];
        float higher = top;
        for (int i = 0; i < kRows / 2; ++i) {
            values[i] = scores[row * kScorePitch + 2 * i + side] * unit;
            higher = fmaxf(higher, values[i]);
        }
        total *= exp2f(top - higher);
        for (int i = 0; i < kRows / 2; ++i) total += exp2f(values[i] - higher);
        top = higher;
        __syncwarp();
    }
    const float other = __shfl_xor_sync(0xffffffff, top, 1), higher = fmaxf(top, other);
    total *= exp2f(top - higher);
    total += __shfl_xor_sync(0xffffffff, total, 1);
    if (side == 0 && lse != nullptr)  // natural logarithm of the sum of exponentials, [B, H, N]
        lse[static_cast<long>(blockIdx.y) * N + first + warp * 16 + row] = (higher + log2f(total)) / kLog2E;
    const float share = 1.0f / total;

    Sums outputs[kHead / 16];
    for (int c = 0; c < kHead / 16; ++c) wmma::fill_fragment(outputs[c], 0.0f);
    for (int key = 0; key < M; key += kRows) {
        __syncthreads();
        load_tile(k_tile, k_head, k_added, key);
        load_tile(q_or_v, v_head, none, key);
        __syncthreads();
        multiply_scores(scores, q_parts, k_tile);
        float values[kRows / 2];
        for (int i = 0; i < kRows / 2; ++i) values[i] = scores[row * kScorePitch + 2 * i + side];
        __syncwarp();  // the probabilities overwrite the scores of their own row
        __half* shares = reinterpret_cast<__half*>(scores);
        for (int i = 0; i < kRows / 2; ++i)
            shares[row * 2 * kScorePitch + 2 * i + side] = __float2half(exp2f(values[i] * unit - higher) * share);
        __syncwarp();
        for (int j = 0; j < kRows / 16; ++j) {
            FragmentA part;
            wmma::load_matrix_sync(part, shares + j * 16, 2 * kScorePitch);
            for (int c = 0; c < kHead / 16; ++c) {
                FragmentV v_part;
                wmma::load_matrix_sync(v_part, q_or_v + j * 16 * kPitch + c * 16, kPitch);
                wmma::mma_sync(outputs[c], part, v_part, outputs[c]);
            }
        }
        __syncwarp();
    }

    for (int c = 0; c < kHead / 16; ++c)
        wmma::store_matrix_sync(scores + c * 16, outputs[c], kScorePitch, wmma::mem_row_major);
    __syncwarp();
    for (int i = lane; i < 16 * kHead; i += 32) {
        const int token = first + warp * 16 + i / kHead, column = i % kHead;
        out[(static_cast<long>(b) * N + token) * H * kHead + h * kHead + column] =
            __float2half(scores[i / kHead * kScorePitch + column]);
    }
}

}  // namespace ipt_fast

#if !defined(__CUDACC_RTC__) && !defined(CUDA_EMULATION)
// q [B, N, H*48], k and v [B, M, H*48] by stride in halves, embeddings [N, H*48] and [M, H*48] or null, out [B, N, H*48]
// and lse [B, H, N] (or null) contiguous; all on the device, 16-byte aligned, strides multiples of 8, N and M of 64.
// Returns a cudaError_t; cudaErrorInvalidValue (1) for sizes that it does not serve.
extern "C" int ipt_patch_attention_forward_f16(const void* q, const void* k, const void* v, const void* q_embed,
                                               const void* k_embed, void* out, float* lse, int B, int H, int N, int M,
                                               long q_batch, long q_row, long k_batch, long k_row, long v_batch,
                                               long v_row, long q_embed_row, long k_embed_row, float scale,
                                               void* stream) {
    using namespace ipt_fast;
    const long strides = q_batch | q_row | k_batch | k_row | v_batch | v_row | q_embed_row | k_embed_row;
    if (B < 1 || H < 1 || N < 1 || M < 1 || N % kRows || M % kRows || strides % kVector || B * H > 65535) return 1;
    const auto half = [](const void* data) { return static_cast<const __half*>(data); };
    forward_kernel<<<dim3(N / kRows, B * H), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        half(q), half(k), half(v), half(q_embed), half(k_embed), static_cast<__half*>(out), lse, H, N, M, q_batch,
        q_row, k_batch, k_row, v_batch, v_row, q_embed_row, k_embed_row, scale);
    return static_cast<int>(cudaGetLastError());
}
#endif
