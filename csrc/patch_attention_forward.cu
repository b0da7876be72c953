// Attention with additive query and key embeddings, forward, for GPUs whose tensor cores Triton does not reach (sm_70).
// Per head: out = softmax((q + q_embed)(k + k_embed)^T scale) v, halves in and out, float32 softmax and sums.
//
// One pass over the keys. A warp owns R queries and keeps their scores and outputs in registers; the running maximum
// and sum of a row are reduced by shuffles, which knows rows from the accumulator's map. Only the probabilities go
// through shared memory, to change from WMMA's accumulator layout to its operand layout.
//
// A block: kWarps * R queries of one head, keys kTile at a time, 32 of them a step of the softmax.

#include "patch_attention.cuh"

namespace ipt_fast {

template <int d, int R, int kWarps, int kTile>
struct Forward {
    static constexpr int kStep = 32;                 // keys a step of the softmax
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kQueries = kWarps * R;      // a block
    static constexpr int kPitchK = kPitchAlong<d>;
    static constexpr int kPitchV = kPitchAcross<d>;
    static constexpr int kPitchP = kStep + 8;
    static constexpr int kTiles = kTile * (kPitchK + kPitchV) + kQueries * kPitchP;  // halves: k, v, probabilities
    static constexpr int kStaged = kQueries * kPitchK;                               // q before, out after
    static constexpr int kBytes = 2 * (kTiles > kStaged ? kTiles : kStaged);
    static_assert(d % 16 == 0 && R % 16 == 0 && kTile % kStep == 0, "whole fragments");
};

// Keys swap bits 2 and 3 of their place among 16, in v and in the probabilities alike: their sum does not mind, and the
// lanes of sm_70 then write probabilities to different banks.
__device__ __forceinline__ int swap_keys(int key) { return (key & ~12) | (key & 4) << 1 | (key & 8) >> 1; }

// q [B, N, H d], k and v [B, M, H d] by stride (in halves), rows dense; q_embed [N, H d], k_embed [M, H d] or null.
// out [B, N, H d] and lse [B, H, N] (natural logarithm of a row's sum of exponentials; or null) contiguous.
// Pointers 16-byte aligned, strides multiples of 8. Grid: B H ceil(N / kQueries) blocks of kThreads, kBytes of memory.
template <int d, int R = 32, int kWarps = 4, int kTile = 64, int kBlocks = d == 64 ? 2 : 3>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
patch_attention_forward(const __half* __restrict__ q, const __half* __restrict__ k, const __half* __restrict__ v,
                        const __half* __restrict__ q_embed, const __half* __restrict__ k_embed,
                        __half* __restrict__ out, float* __restrict__ lse, int H, int N, int M, long long q_batch,
                        long long q_row, long long k_batch, long long k_row, long long v_batch, long long v_row,
                        long long q_embed_row, long long k_embed_row, float scale) {
    using F = Forward<d, R, kWarps, kTile>;
    constexpr int kGroups = R / 16, kParts = d / 16, kSpans = F::kStep / 16;
    constexpr int kLanes = kLanesARow<d>, kRowsABlock = F::kThreads / kLanes, kLoads = kTile / kRowsABlock;
    static_assert(kTile % kRowsABlock == 0, "whole loads");
    extern __shared__ __align__(128) unsigned char shared_memory[];
    __half* const k_tile = reinterpret_cast<__half*>(shared_memory);  // [kTile, d]
    __half* const v_tile = k_tile + kTile * F::kPitchK;               // [kTile, d], keys swapped
    __half* const p_tiles = v_tile + kTile * F::kPitchV;              // [kQueries, 32], keys swapped

    // b H + h; b; h d; first query of the warp; column of this lane's loads; [R, d] of shared memory, the warp's alone.
    struct Where { int head, image, column, query, part; __half* staged; };
    const auto where = [&] {
        const int blocks = (anew(N) + F::kQueries - 1) / F::kQueries, block = block_index(), thread = thread_index();
        const int head = block / blocks, row = thread / 32 * R;
        return Where{head, head / H, head % H * d, block % blocks * F::kQueries + row, thread % kLanes * kVector,
                     k_tile + row * F::kPitchK};
    };

    // ---- the accumulator's map
    const AccumulatorMap map = learn_map<F::kThreads>(reinterpret_cast<float*>(shared_memory));
    __syncthreads();

    // ---- queries to fragments, through rows of shared memory that are this warp's alone
    const unsigned sign = scale < 0 ? 0x80008000u : 0u;     // maxima want a positive factor: -q carries the sign
    constexpr int kRowsAWarp = 32 / kLanes, kWarpLoads = R / kRowsAWarp;
    FragmentA q_parts[kGroups][kParts];
    {
        const Where at = where();
        const Head head = {q + at.image * q_batch + at.column, q_row};
        const Head added = {q_embed ? q_embed + at.column : nullptr, q_embed_row};
        const int row = thread_index() % 32 / kLanes;
        uint4 rows[kWarpLoads];
        fetch_sum<kWarpLoads, kRowsAWarp>(rows, head, added, at.query + row, at.part, at.part < d ? N : 0);
        for (int i = 0; i < kWarpLoads && at.part < d; ++i) {
            const uint4 x = {rows[i].x ^ sign, rows[i].y ^ sign, rows[i].z ^ sign, rows[i].w ^ sign};
            __half* const to = at.staged + (row + i * kRowsAWarp) * F::kPitchK + at.part;
            write_shared(reinterpret_cast<uint4*>(to), x);
        }
        __syncwarp();
        for (int i = 0; i < kGroups; ++i)
            for (int c = 0; c < kParts; ++c)
                wmma::load_matrix_sync(q_parts[i][c], at.staged + i * 16 * F::kPitchK + c * 16, F::kPitchK);
    }

    const float unit = scale == 0 ? 1e-30f : fabsf(scale) * kLog2E;  // 0 times a masked score would be nan
    float top[kGroups][2], total[kGroups][2];  // of this lane's rows: highest score; sum over this lane's columns
    Sums outputs[kGroups][kParts];
    for (int i = 0; i < kGroups; ++i) {
        for (int r = 0; r < 2; ++r) top[i][r] = kLowest, total[i][r] = 0.0f;
        for (int c = 0; c < kParts; ++c) wmma::fill_fragment(outputs[i][c], 0.0f);
    }
    __half* const p_tile = p_tiles + threadIdx.x / 32 * R * F::kPitchP;  // [R, 32]

#pragma unroll 1
    for (int tile = 0; tile < M; tile += kTile) {
        // ---- keys and values to shared memory: all loads first, then all stores
        {
            const Where at = where();
            const Head k_head = {k + at.image * k_batch + at.column, k_row};
            const Head k_added = {k_embed ? k_embed + at.column : nullptr, k_embed_row};
            const Head v_head = {v + at.image * v_batch + at.column, v_row};
            const int row = thread_index() / kLanes, count = at.part < d ? M : 0;
            uint4 keys[kLoads], values[kLoads];
            fetch_sum<kLoads, kRowsABlock>(keys, k_head, k_added, tile + row, at.part, count);
            fetch<kLoads, kRowsABlock>(values, v_head, tile + row, at.part, count);
            __syncthreads();  // the queries, or the tile before, have been used
            for (int i = 0; i < kLoads && at.part < d; ++i) {
                const int place = row + i * kRowsABlock;
                write_shared(reinterpret_cast<uint4*>(k_tile + place * F::kPitchK + at.part), keys[i]);
                write_shared(reinterpret_cast<uint4*>(v_tile + swap_keys(place) * F::kPitchV + at.part), values[i]);
            }
        }
        __syncthreads();

#pragma unroll 1
        for (int step = 0; step < kTile && tile + step < M; step += F::kStep) {
            const __half* const k_step = k_tile + step * F::kPitchK;  // constant distances from here on
            const __half* const v_step = v_tile + step * F::kPitchV;

            // ---- scores [R, 32] = q k^T
            Sums scores[kGroups][kSpans];
            for (int i = 0; i < kGroups; ++i)
                for (int j = 0; j < kSpans; ++j) wmma::fill_fragment(scores[i][j], 0.0f);
            for (int c = 0; c < kParts; ++c)
                for (int j = 0; j < kSpans; ++j) {
                    FragmentBt part;
                    wmma::load_matrix_sync(part, k_step + j * 16 * F::kPitchK + c * 16, F::kPitchK);
                    for (int i = 0; i < kGroups; ++i) wmma::mma_sync(scores[i][j], q_parts[i][c], part, scores[i][j]);
                }
            if (tile + step + F::kStep > M)
                for (int i = 0; i < kGroups; ++i)
                    for (int j = 0; j < kSpans; ++j)
                        for (int e = 0; e < 8; ++e)
                            if (tile + step + j * 16 + map.column(e / 4) + e % 2 >= M)
                                scores[i][j].x[e] = minus_infinity();

            // ---- the rows' maxima so far; what was summed below an older maximum shrinks
            float shrink[kGroups][2];
            bool raised = false;
            for (int i = 0; i < kGroups; ++i)
                for (int r = 0; r < 2; ++r) {
                    float highest = top[i][r];
                    for (int j = 0; j < kSpans; ++j)
                        for (int e = 0; e < 8; ++e)
                            if (row_of(e) == r) highest = fmaxf(highest, scores[i][j].x[e]);
                    for (int p = 0; p < 2; ++p)
                        highest = fmaxf(highest, __shfl_sync(kAllLanes, highest, map.partner[p]));
                    shrink[i][r] = exp2_fast((top[i][r] - highest) * unit);
                    raised |= highest > top[i][r];
                    top[i][r] = highest;
                }
            if (__any_sync(kAllLanes, raised))
                for (int i = 0; i < kGroups; ++i) {
                    for (int r = 0; r < 2; ++r) total[i][r] *= shrink[i][r];
                    for (int c = 0; c < kParts; ++c)
                        for (int e = 0; e < 8; ++e) outputs[i][c].x[e] *= shrink[i][row_of(e)];
                }

            // ---- probabilities, relative to the maxima, to shared memory
            int p_pair[2][2];  // where pairs of elements go, in halves
            for (int r = 0; r < 2; ++r)
                for (int c = 0; c < 2; ++c) {
                    const AccumulatorMap here = map.here();
                    p_pair[r][c] = here.row(r) * F::kPitchP + swap_keys(here.column(c));
                }
            for (int i = 0; i < kGroups; ++i) {
                const float offset[2] = {kShiftLog2 - top[i][0] * unit, kShiftLog2 - top[i][1] * unit};
                for (int j = 0; j < kSpans; ++j)
                    for (int e = 0; e < 8; e += 2) {
                        const float low = exp2_fast(fmaf(scores[i][j].x[e], unit, offset[row_of(e)]));
                        const float high = exp2_fast(fmaf(scores[i][j].x[e + 1], unit, offset[row_of(e)]));
                        total[i][row_of(e)] += low + high;
                        __half* const to = p_tile + i * 16 * F::kPitchP + j * 16 + p_pair[row_of(e)][e / 4];
                        write_shared(reinterpret_cast<unsigned*>(to), pack_probabilities(low, high));
                    }
            }
            __syncwarp();

            // ---- outputs [R, d] += probabilities v
            for (int j = 0; j < kSpans; ++j) {
                FragmentA p_parts[kGroups];
                for (int i = 0; i < kGroups; ++i)
                    wmma::load_matrix_sync(p_parts[i], p_tile + i * 16 * F::kPitchP + j * 16, F::kPitchP);
                for (int c = 0; c < kParts; ++c) {
                    FragmentB part;
                    wmma::load_matrix_sync(part, v_step + j * 16 * F::kPitchV + c * 16, F::kPitchV);
                    for (int i = 0; i < kGroups; ++i) wmma::mma_sync(outputs[i][c], p_parts[i], part, outputs[i][c]);
                }
            }
            __syncwarp();  // the probabilities have been read
        }
    }

    // ---- outputs over their sums, through this warp's rows of shared memory to whole rows of `out`
    __syncthreads();  // every warp is done with the last tile
    const Where at = where();
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
        float share[2];
        for (int r = 0; r < 2; ++r) {
            float sum = total[i][r];
            for (int p = 0; p < 2; ++p) sum += __shfl_sync(kAllLanes, sum, map.partner[p]);
            share[r] = 1.0f / sum * (1.0f / (kHalfPerOne * kUnshift));
            const int row = at.query + i * 16 + map.row(r);
            if (lse != nullptr && map.leads() && row < N)
                lse[static_cast<long long>(at.head) * N + row] =
                    (top[i][r] * unit + (log2f(sum) - kShiftLog2)) / kLog2E;
        }
#pragma unroll
        for (int c = 0; c < kParts; ++c)
            for (int e = 0; e < 8; e += 2) {
                const float* x = outputs[i][c].x + e;
                __half* const to =
                    at.staged + (i * 16 + map.row(row_of(e))) * F::kPitchK + c * 16 + map.column(e / 4);
                write_shared(reinterpret_cast<unsigned*>(to),
                             pack_halves(x[0] * share[row_of(e)], x[1] * share[row_of(e)]));
            }
    }
    __syncwarp();
    for (int i = 0; i < kWarpLoads; ++i) {
        const int row = thread_index() % 32 / kLanes + i * kRowsAWarp, token = at.query + row;
        __half* const to = out + (static_cast<long long>(at.image) * N + token) * H * d + at.column + at.part;
        if (at.part < d && token < N)
            *reinterpret_cast<uint4*>(to) =
                read_shared(reinterpret_cast<const uint4*>(at.staged + row * F::kPitchK + at.part));
    }
}

}  // namespace ipt_fast
