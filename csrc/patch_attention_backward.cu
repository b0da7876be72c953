// Attention with additive query and key embeddings, backward, for GPUs that Triton's tensor cores do not reach (sm_70).
// With p = softmax(s scale), s = (q + q_embed)(k + k_embed)^T, and g the gradient of out = p v, per head:
//   dv = p^T g,   ds = p (g v^T - delta) scale,   dq = ds (k + k_embed),   dk = ds^T (q + q_embed),
// delta the sum over a row of g out. Probabilities are computed again from lse; nothing of [N, M] leaves the chip.
//
// One block a head, 32 keys a warp: k and v of 256 keys stay in shared memory, queries pass by 32 at a time (four warps
// and 16 queries fit the 64 KB of sm_75). A warp works on s^T and keeps its rows of dk and dv in registers to the end.
// dq sums over all warps' keys: ds^T meets in shared memory, and each 16 x 16 tile of dq is summed by one warp. Every
// sum has one order: no atomics, the same bits each time. More keys than a block holds: one chunk after the other, dq
// summed in `dq_sums` by the same warps.

#include "patch_attention.cuh"

namespace ipt_fast {

template <int d, int kWarps = 8>
struct Backward {
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kKeys = 32 * kWarps;             // a chunk
    static constexpr int kQueries = kWarps == 8 && d <= 48 ? 32 : 16;  // a step; d = 64 leaves no memory for more
    static constexpr int kPitchK = d == 64 ? 72 : 48;     // read along both ways, as q and g are
    static constexpr int kPitchV = kPitchAlong<d>;
    static constexpr int kPitchQ = d == 64 ? 72 : 48;
    static constexpr int kPitchS = kQueries == 32 ? 48 : 24;
    static constexpr int kHalves = kKeys * (kPitchK + kPitchV + kPitchS) + 4 * kQueries * kPitchQ;
    static constexpr int kBytes = 2 * kHalves + 4 * 4 * kQueries + 16;
    static_assert(kBytes <= (kWarps > 4 ? 96 : 64) << 10, "what a block of sm_70, of sm_75 may have");
    static_assert(kQueries * kLanesARow<d> <= kThreads && kQueries / 16 * (d / 16) <= kWarps, "one piece of work each");
};

// sums [32, 16 spans] += rows [32, d] columns^T, `columns` [16 spans, d].
template <int kParts, int kSpans>
__device__ __forceinline__ void multiply_rows(Sums (&sums)[2][kSpans], const __half* rows, int row_pitch,
                                              const __half* columns, int column_pitch) {
    for (int c = 0; c < kParts; ++c) {
        FragmentA left[2];
        for (int i = 0; i < 2; ++i) wmma::load_matrix_sync(left[i], rows + i * 16 * row_pitch + c * 16, row_pitch);
        for (int j = 0; j < kSpans; ++j) {
            FragmentBt right;
            wmma::load_matrix_sync(right, columns + j * 16 * column_pitch + c * 16, column_pitch);
            for (int i = 0; i < 2; ++i) wmma::mma_sync(sums[i][j], left[i], right, sums[i][j]);
        }
    }
}

// sums [32, d] += weights [32, 16 spans] rows, `rows` [16 spans, d].
template <int kSpans, int kParts>
__device__ __forceinline__ void multiply_columns(Sums (&sums)[2][kParts], const __half* weights, int weight_pitch,
                                                 const __half* rows, int row_pitch) {
    for (int j = 0; j < kSpans; ++j) {
        FragmentA left[2];
        for (int i = 0; i < 2; ++i)
            wmma::load_matrix_sync(left[i], weights + i * 16 * weight_pitch + j * 16, weight_pitch);
        for (int c = 0; c < kParts; ++c) {
            FragmentB right;
            wmma::load_matrix_sync(right, rows + j * 16 * row_pitch + c * 16, row_pitch);
            for (int i = 0; i < 2; ++i) wmma::mma_sync(sums[i][c], left[i], right, sums[i][c]);
        }
    }
}

__device__ __forceinline__ float dot_halves(unsigned a, unsigned b) {
    const float2 x = __half22float2(*reinterpret_cast<__half2*>(&a));
    const float2 y = __half22float2(*reinterpret_cast<__half2*>(&b));
    return x.x * y.x + x.y * y.y;
}
__device__ __forceinline__ float dot_halves(uint4 a, uint4 b) {
    return (dot_halves(a.x, b.x) + dot_halves(a.y, b.y)) + (dot_halves(a.z, b.z) + dot_halves(a.w, b.w));
}

// Of 16 numbers, one a column, those of an accumulator's elements 4 c and 4 c + 1 (and of 4 c + 2 and 4 c + 3).
__device__ __forceinline__ float2 read_pair(const float* numbers, const AccumulatorMap& map, int c) {
    return read_shared(reinterpret_cast<const float2*>(numbers + map.column(c)));
}
__device__ __forceinline__ float of_column(const float2 (&pairs)[2], int element) {
    return element % 2 ? pairs[element / 4].y : pairs[element / 4].x;
}

__device__ __forceinline__ unsigned* pair_at(__half* at) { return reinterpret_cast<unsigned*>(at); }

constexpr unsigned kNans = 0x7fff7fff;  // two halves

// A 16 x 16 tile of a gradient from `row` on, times `factor`, as halves; no row from `count` on.
__device__ __forceinline__ void store_gradient(__half* to, long long pitch, const Sums& sums, float factor,
                                               const AccumulatorMap& map, int row, int count) {
    for (int e = 0; e < 8; e += 2) {
        const int token = row + map.row(row_of(e));
        if (token < count)
            *pair_at(to + token * pitch + map.column(e / 4)) =
                pack_halves(sums.x[e] * factor, sums.x[e + 1] * factor);
    }
}

// grad [B, N, H d], q, k, v and the embeddings as in the forward, by stride; out [B, N, H d] and lse [B, H, N] as the
// forward left them. dq [B, N, H d], dk and dv [B, M, H d] by stride, halves. dq_sums: floats, B H times d times N
// rounded up to kQueries, any content, 32-byte aligned; needed (not null) only where M > kKeys. All other pointers
// 16-byte aligned, strides multiples of 8. Grid: B H blocks of kThreads, kBytes of memory.
template <int d, int kWarps = 8>
__global__ void __launch_bounds__(32 * kWarps, 1)
patch_attention_backward(const __half* __restrict__ grad, const __half* __restrict__ q, const __half* __restrict__ k,
                         const __half* __restrict__ v, const __half* __restrict__ q_embed,
                         const __half* __restrict__ k_embed, const __half* __restrict__ out,
                         const float* __restrict__ lse, __half* __restrict__ dq, __half* __restrict__ dk,
                         __half* __restrict__ dv, float* dq_sums, int H, int N, int M, long long grad_batch,
                         long long grad_row, long long q_batch, long long q_row, long long k_batch, long long k_row,
                         long long v_batch, long long v_row, long long q_embed_row, long long k_embed_row,
                         long long dq_batch, long long dq_row, long long dk_batch, long long dk_row,
                         long long dv_batch, long long dv_row, float scale) {
    using F = Backward<d, kWarps>;
    constexpr int kParts = d / 16, kSpans = F::kQueries / 16, kLanes = kLanesARow<d>;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    __half* const k_tile = reinterpret_cast<__half*>(shared_memory);  // [kKeys, d]
    __half* const v_tile = k_tile + F::kKeys * F::kPitchK;            // [kKeys, d]
    __half* const s_tile = v_tile + F::kKeys * F::kPitchV;            // [kKeys, queries]: p^T, then ds^T
    __half* const q_tiles = s_tile + F::kKeys * F::kPitchS;           // 2 of [queries, d]: one is read, one written
    __half* const g_tiles = q_tiles + 2 * F::kQueries * F::kPitchQ;   // 2 of [queries, d]
    float* const offsets = reinterpret_cast<float*>(g_tiles + 2 * F::kQueries * F::kPitchQ);  // 2 of [queries]
    float* const deltas = offsets + 2 * F::kQueries;                                          // 2 of [queries]
    int* const place = reinterpret_cast<int*>(deltas + 2 * F::kQueries);

    // b; h d; row and column of this lane's loads. The first two are divided once and read again from shared memory.
    if (threadIdx.x < 2) write_shared(place + threadIdx.x, int(threadIdx.x ? blockIdx.x % H * d : blockIdx.x / H));
    struct Where { int image, column, row, part; };
    const auto where = [&] {
        const int thread = thread_index();
        return Where{read_shared(place), read_shared(place + 1), thread / kLanes, thread % kLanes * kVector};
    };
    const int warp = threadIdx.x / 32;
    const float unit = scale * kLog2E;
    const AccumulatorMap map = learn_map<F::kThreads>(reinterpret_cast<float*>(shared_memory));

    // ---- a step's queries: rows to registers early, from there to shared memory late
    uint4 q_next[1], added_next[1], g_next[1], out_next[1];
    float lse_next;
    const auto fetch_queries = [&](int first) {
        const Where at = where();
        const Head q_head = {q + at.image * q_batch + at.column, q_row};
        const Head q_added = {q_embed ? q_embed + at.column : nullptr, q_embed_row};
        const Head g_head = {grad + at.image * grad_batch + at.column, grad_row};
        const Head o_head = {out + static_cast<long long>(at.image) * N * H * d + at.column, H * d};
        const int query = first + at.row, count = at.row < F::kQueries && at.part < d ? N : 0;
        fetch<1, 1>(q_next, q_head, query, at.part, count);
        fetch<1, 1>(added_next, q_added, query, at.part, q_embed ? count : 0);
        fetch<1, 1>(g_next, g_head, query, at.part, count);
        fetch<1, 1>(out_next, o_head, query, at.part, count);
        // Rows past the end have probability 0.
        lse_next = -minus_infinity();
        if (query < N) lse_next = lse[static_cast<long long>(block_index()) * N + query];
    };
    const auto place_queries = [&](int buffer) {
        const Where at = where();
        if (at.row >= F::kQueries) return;  // whole warps
        float delta = dot_halves(g_next[0], out_next[0]);
        for (int lane = 1; lane < kLanes; lane *= 2) delta += __shfl_xor_sync(kAllLanes, delta, lane);
        const int row = buffer * F::kQueries + at.row;
        if (at.part < d) {
            q_next[0] = add_halves(q_next[0], added_next[0]);  // zeros where there is no embedding
            if (lse_next != lse_next) g_next[0] = uint4{kNans, kNans, kNans, kNans};  // p is nan, which packing loses
            write_shared(reinterpret_cast<uint4*>(q_tiles + row * F::kPitchQ + at.part), q_next[0]);
            write_shared(reinterpret_cast<uint4*>(g_tiles + row * F::kPitchQ + at.part), g_next[0]);
        }
        if (at.part == 0) {
            write_shared(offsets + row, kShiftLog2 - lse_next * kLog2E);
            write_shared(deltas + row, -delta);
        }
    };

#pragma unroll 1
    for (int chunk = 0; chunk < M; chunk += F::kKeys) {
        const int count = M - chunk < F::kKeys ? M - chunk : F::kKeys;
        const bool works = warp * 32 < count;

        // ---- keys and values of the chunk, zeros past the end
        fetch_queries(0);
        __syncthreads();  // the numbers of the map, or the chunk before, have been used
        {
            constexpr int kRows = F::kThreads / kLanes;  // a load of the block; four loads at a time
            const Where at = where();
            const Head k_head = {k + at.image * k_batch + at.column, k_row};
            const Head k_added = {k_embed ? k_embed + at.column : nullptr, k_embed_row};
            const Head v_head = {v + at.image * v_batch + at.column, v_row};
#pragma unroll 1
            for (int row = at.row; row < F::kKeys; row += 4 * kRows) {
                const int end = at.part < d ? M : 0;
                uint4 keys[4], added[4], values[4];
                fetch<4, kRows>(keys, k_head, chunk + row, at.part, end);
                fetch<4, kRows>(added, k_added, chunk + row, at.part, k_embed ? end : 0);
                fetch<4, kRows>(values, v_head, chunk + row, at.part, end);
                for (int i = 0; i < 4 && at.part < d; ++i) {
                    __half* const key = k_tile + (row + i * kRows) * F::kPitchK + at.part;
                    __half* const value = v_tile + (row + i * kRows) * F::kPitchV + at.part;
                    write_shared(reinterpret_cast<uint4*>(key), add_halves(keys[i], added[i]));
                    write_shared(reinterpret_cast<uint4*>(value), values[i]);
                }
            }
        }
        if (!works)  // no keys, no ds^T: dq sums keys by 64
            for (int i = 0; i < F::kPitchS; i += kVector)
                write_shared(reinterpret_cast<uint4*>(s_tile + threadIdx.x * F::kPitchS + i), uint4{0, 0, 0, 0});
        place_queries(0);
        Sums dk_sums[2][kParts], dv_sums[2][kParts];  // of this warp's 32 keys
        for (int i = 0; i < 2; ++i)
            for (int c = 0; c < kParts; ++c) {
                wmma::fill_fragment(dk_sums[i][c], 0.0f);
                wmma::fill_fragment(dv_sums[i][c], 0.0f);
            }
        __syncthreads();

        int buffer = 0;
#pragma unroll 1
        for (int query = 0; query < N; query += F::kQueries, buffer ^= 1) {
            const __half* const q_tile = q_tiles + buffer * F::kQueries * F::kPitchQ;
            const __half* const g_tile = g_tiles + buffer * F::kQueries * F::kPitchQ;
            const bool more = query + F::kQueries < N;
            if (more) fetch_queries(query + F::kQueries);

            if (works) {
                // ---- s^T [32, queries] = k q^T, and from it p^T
                Sums p[2][kSpans];
                for (int i = 0; i < 2; ++i)
                    for (int j = 0; j < kSpans; ++j) wmma::fill_fragment(p[i][j], 0.0f);
                const AccumulatorMap here = map.here();
                int s_pair[2][2];  // where pairs of elements go in s_tile, in halves
                for (int r = 0; r < 2; ++r)
                    for (int c = 0; c < 2; ++c) s_pair[r][c] = (warp * 32 + here.row(r)) * F::kPitchS + here.column(c);
                multiply_rows<kParts>(p, k_tile + warp * 32 * F::kPitchK, F::kPitchK, q_tile, F::kPitchQ);
                for (int j = 0; j < kSpans; ++j) {
                    float2 offset[2];  // of this lane's columns, which are queries
                    for (int c = 0; c < 2; ++c) offset[c] = read_pair(offsets + buffer * F::kQueries + j * 16, here, c);
                    for (int i = 0; i < 2; ++i)
                        for (int e = 0; e < 8; ++e)
                            p[i][j].x[e] = exp2_fast(fmaf(p[i][j].x[e], unit, of_column(offset, e)));
                    if (warp * 32 + 32 > count)  // keys past the end
                        for (int i = 0; i < 2; ++i)
                            for (int e = 0; e < 8; ++e)
                                if (warp * 32 + i * 16 + here.row(row_of(e)) >= count) p[i][j].x[e] = 0.0f;
                    for (int i = 0; i < 2; ++i)
                        for (int e = 0; e < 8; e += 2)
                            write_shared(pair_at(s_tile + i * 16 * F::kPitchS + j * 16 + s_pair[row_of(e)][e / 4]),
                                         pack_probabilities(p[i][j].x[e], p[i][j].x[e + 1]));
                }
                __syncwarp();

                // ---- dv [32, d] += p^T g
                multiply_columns<kSpans>(dv_sums, s_tile + warp * 32 * F::kPitchS, F::kPitchS, g_tile, F::kPitchQ);

                // ---- dp^T - delta = v g^T - delta, and from it ds^T = p^T (dp^T - delta); `scale` comes at the end
                Sums ds[2][kSpans];
                for (int j = 0; j < kSpans; ++j) {
                    float2 delta[2];
                    for (int c = 0; c < 2; ++c) delta[c] = read_pair(deltas + buffer * F::kQueries + j * 16, here, c);
                    for (int i = 0; i < 2; ++i)
                        for (int e = 0; e < 8; ++e) ds[i][j].x[e] = of_column(delta, e);
                }
                multiply_rows<kParts>(ds, v_tile + warp * 32 * F::kPitchV, F::kPitchV, g_tile, F::kPitchQ);
                __syncwarp();  // p^T has been read
                for (int i = 0; i < 2; ++i)
                    for (int j = 0; j < kSpans; ++j)
                        for (int e = 0; e < 8; e += 2)
                            write_shared(pair_at(s_tile + i * 16 * F::kPitchS + j * 16 + s_pair[row_of(e)][e / 4]),
                                         pack_halves(p[i][j].x[e] * kUnshift * ds[i][j].x[e],
                                                     p[i][j].x[e + 1] * kUnshift * ds[i][j].x[e + 1]));
                __syncwarp();

                // ---- dk [32, d] += ds^T q
                multiply_columns<kSpans>(dk_sums, s_tile + warp * 32 * F::kPitchS, F::kPitchS, q_tile, F::kPitchQ);
            }
            if (more) place_queries(buffer ^ 1);
            __syncthreads();  // ds^T of all warps is there, and the next step's queries

            // ---- dq [queries, d] += ds k, a tile of 16 x 16 a warp
            if (warp < kSpans * kParts) {
                const Where at = where();
                const int i = warp / kParts, c = warp % kParts, row = query + i * 16;
                const long long padded = (N + F::kQueries - 1) / F::kQueries * F::kQueries;
                float* const so_far = dq_sums + (block_index() * padded + row) * d + c * 16;
                Sums sums[2];  // two chains, of even and of odd keys: one would wait for itself
                wmma::fill_fragment(sums[1], 0.0f);
                if (chunk == 0) wmma::fill_fragment(sums[0], 0.0f);
                else wmma::load_matrix_sync(sums[0], so_far, d, wmma::mem_row_major);
                const __half* ds_at = s_tile + i * 16;
                const __half* key_at = k_tile + c * 16;
#pragma unroll 1
                for (int key = 0; key < count; key += 64, ds_at += 64 * F::kPitchS, key_at += 64 * F::kPitchK)
                    for (int n = 0; n < 4; ++n) {
                        FragmentAt ds;
                        FragmentB keys;
                        wmma::load_matrix_sync(ds, ds_at + n * 16 * F::kPitchS, F::kPitchS);
                        wmma::load_matrix_sync(keys, key_at + n * 16 * F::kPitchK, F::kPitchK);
                        wmma::mma_sync(sums[n % 2], ds, keys, sums[n % 2]);
                    }
                for (int e = 0; e < 8; ++e) sums[0].x[e] += sums[1].x[e];
                if (chunk + F::kKeys < M) wmma::store_matrix_sync(so_far, sums[0], d, wmma::mem_row_major);
                else
                    store_gradient(dq + at.image * dq_batch + at.column + c * 16, dq_row, sums[0], scale, map.here(),
                                   row, N);
            }
            __syncthreads();  // ds^T has been read
        }

        // ---- dk and dv of the chunk
        const Where at = where();
        if (!works) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int c = 0; c < kParts; ++c) {
                const int row = chunk + warp * 32 + i * 16, column = at.column + c * 16;
                store_gradient(dk + at.image * dk_batch + column, dk_row, dk_sums[i][c], scale, map, row, M);
                store_gradient(dv + at.image * dv_batch + column, dv_row, dv_sums[i][c], 1 / kHalfPerOne, map, row, M);
            }
    }
}

}  // namespace ipt_fast
