// Enough of CUDA to run a kernel of csrc/ on a CPU: a block's threads are threads of the host, barriers are barriers.
// Every lane of a warp holds the whole of a WMMA fragment; what one lane stores the others see after __syncwarp.
#pragma once
#define CUDA_EMULATION

#include <barrier>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static

using __half = _Float16;
struct uint4 { std::uint32_t x, y, z, w; };
struct Place { unsigned x, y; };
inline thread_local Place threadIdx, blockIdx;

inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half(float value) { return static_cast<__half>(value); }

struct Warp {
    std::barrier<> barrier{32};
    float exchanged[32];
};
struct Block {
    explicit Block(int threads) : barrier(threads), warps(threads / 32) {}
    std::barrier<> barrier;
    std::vector<Warp> warps;
};
inline Block* block;

inline void __syncthreads() { block->barrier.arrive_and_wait(); }
inline void __syncwarp() { block->warps[threadIdx.x / 32].barrier.arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    Warp& warp = block->warps[threadIdx.x / 32];
    const unsigned lane = threadIdx.x % 32;
    warp.exchanged[lane] = value;
    warp.barrier.arrive_and_wait();
    const float other = warp.exchanged[lane ^ mask];
    warp.barrier.arrive_and_wait();
    return other;
}

namespace nvcuda::wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment { float x[16][16]; };

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major>& f, const T* from, int pitch) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) f.x[i][j] = from[i * pitch + j];
}
template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major>& f, const T* from, int pitch) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) f.x[i][j] = from[j * pitch + i];
}
template <typename F>
void fill_fragment(F& f, float value) {
    for (auto& row : f.x)
        for (float& x : row) x = value;
}
template <typename A, typename B, typename C>
void mma_sync(C& d, const A& a, const B& b, const C& c) {
    C result = c;
    for (int i = 0; i < 16; ++i)
        for (int l = 0; l < 16; ++l)
            for (int j = 0; j < 16; ++j) result.x[i][j] += a.x[i][l] * b.x[l][j];
    d = result;
}
template <typename F>
void store_matrix_sync(float* to, const F& f, int pitch, layout_t) {
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 16; ++j) to[i * pitch + j] = f.x[i][j];
}
}  // namespace nvcuda::wmma

template <typename Kernel, typename... Args>
void launch(Kernel kernel, unsigned blocks_x, unsigned blocks_y, int threads, Args... args) {
    for (unsigned y = 0; y < blocks_y; ++y)
        for (unsigned x = 0; x < blocks_x; ++x) {
            Block here(threads);
            block = &here;
            std::vector<std::thread> all;
            for (int t = 0; t < threads; ++t)
                all.emplace_back([=] {
                    threadIdx = {static_cast<unsigned>(t), 0};
                    blockIdx = {x, y};
                    kernel(args...);
                });
            for (std::thread& thread : all) thread.join();
        }
}
