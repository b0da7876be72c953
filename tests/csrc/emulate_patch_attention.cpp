// The kernels of csrc/ behind C functions that run them on the CPU.
#include "cuda_emulation.h"

#include "../../csrc/patch_attention_backward.cu"
#include "../../csrc/patch_attention_forward.cu"

namespace {

std::string counted;

template <int d, int R>
void forward(const __half* const* in, __half* out, float* lse, const int* size, const long long* stride, float scale) {
    using F = ipt_fast::Forward<d, R, 4, 64>;
    const auto [B, H, N, M] = std::array{size[0], size[1], size[2], size[3]};
    launch(ipt_fast::patch_attention_forward<d, R, 4, 64>, B * H * ((N + F::kQueries - 1) / F::kQueries), F::kThreads,
           F::kBytes, in[0], in[1], in[2], in[3], in[4], out, lse, H, N, M, stride[0], stride[1], stride[2], stride[3],
           stride[4], stride[5], stride[6], stride[7], scale);
}

template <int d, int kWarps>
void backward(const __half* const* in, const float* lse, __half* const* out, float* dq_sums, const int* size,
              const long long* stride, float scale) {
    using F = ipt_fast::Backward<d, kWarps>;
    launch(ipt_fast::patch_attention_backward<d, kWarps>, size[0] * size[1], F::kThreads, F::kBytes, in[0], in[1],
           in[2], in[3], in[4], in[5], in[6], lse, out[0], out[1], out[2], dq_sums, size[1], size[2], size[3],
           stride[0], stride[1], stride[2], stride[3], stride[4], stride[5], stride[6], stride[7], stride[8], stride[9],
           stride[10], stride[11], stride[12], stride[13], stride[14], stride[15], scale);
}

const char* outcome() { return machine.error.empty() ? nullptr : machine.error.c_str(); }

}  // namespace

// How the next launches run; see cuda_emulation.h.
extern "C" void configure(int layout, int order, int skip_barrier, int counts) {
    set_layout(layout);
    machine.order = order;
    machine.random.seed(order);
    machine.skip_barrier = skip_barrier;
    machine.counts = counts;
}

// in: q, k, v, q_embed, k_embed. size: B, H, N, M, d, queries a warp. stride: as the kernel's. Returns what went wrong.
extern "C" const char* emulate_forward(const __half* const* in, __half* out, float* lse, const int* size,
                                       const long long* stride, float scale) {
    const int d = size[4], R = size[5];
    if (R == 32 && d == 32) forward<32, 32>(in, out, lse, size, stride, scale);
    else if (R == 32 && d == 48) forward<48, 32>(in, out, lse, size, stride, scale);
    else if (R == 32 && d == 64) forward<64, 32>(in, out, lse, size, stride, scale);
    else if (R == 16 && d == 48) forward<48, 16>(in, out, lse, size, stride, scale);
    else return "no such variant";
    return outcome();
}

// in: grad, q, k, v, q_embed, k_embed, out. out: dq, dk, dv. size: B, H, N, M, d, warps.
extern "C" const char* emulate_backward(const __half* const* in, const float* lse, __half* const* out, float* dq_sums,
                                        const int* size, const long long* stride, float scale) {
    const int d = size[4], warps = size[5];
    if (d == 32 && warps == 8) backward<32, 8>(in, lse, out, dq_sums, size, stride, scale);
    else if (d == 48 && warps == 8) backward<48, 8>(in, lse, out, dq_sums, size, stride, scale);
    else if (d == 48 && warps == 4) backward<48, 4>(in, lse, out, dq_sums, size, stride, scale);
    else if (d == 64 && warps == 8) backward<64, 8>(in, lse, out, dq_sums, size, stride, scale);
    else return "no such variant";
    return outcome();
}

// What a launch needs: threads, bytes of shared memory, queries (forward) or keys (backward) a block.
extern "C" void geometry(int backward, int d, int warps, int* out) {
    const auto put = [&](int threads, int bytes, int rows) { out[0] = threads, out[1] = bytes, out[2] = rows; };
    const auto of = [&](auto size) {
        using F = ipt_fast::Forward<size, 32, 4, 64>;
        using B = ipt_fast::Backward<size>;
        using Small = ipt_fast::Backward<size, 4>;
        if (backward && warps == 4) put(Small::kThreads, Small::kBytes, Small::kKeys);
        else if (backward) put(B::kThreads, B::kBytes, B::kKeys);
        else put(F::kThreads, F::kBytes, F::kQueries);
    };
    if (d == 32) of(std::integral_constant<int, 32>{});
    if (d == 48) of(std::integral_constant<int, 48>{});
    if (d == 64) of(std::integral_constant<int, 64>{});
}

// "line bytes write instructions split merged" a line, of the last launch.
extern "C" const char* wavefronts() {
    counted.clear();
    for (const auto& [key, c] : machine.by_line) {
        for (const long n : {long{key[0]}, long{key[1]}, long{key[2]}, c.instructions, c.split, c.merged})
            counted += std::to_string(n) + " ";
        counted += "\n";
    }
    return counted.c_str();
}
