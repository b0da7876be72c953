// The kernel of csrc/patch_attention.cu behind a C function that runs it on the CPU.
#include "cuda_emulation.h"

#include "../../csrc/patch_attention.cu"

extern "C" void emulate(const __half* q, const __half* k, const __half* v, const __half* q_embed,
                        const __half* k_embed, __half* out, float* lse, int B, int H, int N, int M, long q_batch,
                        long q_row, long k_batch, long k_row, long v_batch, long v_row, long q_embed_row,
                        long k_embed_row, float scale) {
    launch(ipt_fast::forward_kernel, N / ipt_fast::kRows, B * H, ipt_fast::kThreads, q, k, v, q_embed, k_embed, out,
           lse, H, N, M, q_batch, q_row, k_batch, k_row, v_batch, v_row, q_embed_row, k_embed_row, scale);
}
