// The wgmma and TMA wrappers against products of integers: a wrong descriptor gives plausible numbers, but not these.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/tensor.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/tma.cuh"

namespace lc::kernels {
namespace {

// Small integers: every product and sum below is exact in bf16 and f32.
__host__ __device__ float a_of(int m, int k) {
    return static_cast<float>((7 * m + 11 * k + m * k) % 13 - 6);
}
__host__ __device__ float b_of(int n, int k) {
    return static_cast<float>((5 * n + 3 * k + 2 * n * k) % 11 - 5);
}

constexpr int kRow = 64;  // of A, where the 64 rows that are multiplied begin

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// tile[r][c] = value(r, c)
template <int Rows, int Columns, class F>
__device__ void fill(const WgmmaTile<Rows, Columns>& tile, F&& value) {
    for (int i = threadIdx.x; i < Rows * Columns; i += kWarpgroup)
        tile.chunk(i / Columns, i % Columns / 8 * 8)[i % 8] = __float2bfloat16(value(i / Columns, i % Columns));
}

template <int N>
__device__ void store(const float (&c)[N / 2], float* to) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int i = 0; i < N / 2; ++i) to[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = c[i];
}

#endif

// to [64,N] = 2 (A B), the second time on top of the first. K = 128. FromRegisters: A; BMajor: how B lies.
template <int N, bool FromRegisters, Major BMajor>
__global__ void product_kernel(float* to) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int kK = 128;
    extern __shared__ __align__(1024) unsigned char shared[];
    using TileA = WgmmaTile<2 * kRow, kK>;
    using TileB = std::conditional_t<BMajor == Major::K, WgmmaTile<N, kK>, WgmmaTile<kK, N>>;
    const TileA a{reinterpret_cast<__nv_bfloat16*>(shared)};
    const TileB b{a.data + TileA::kBytes / 2};
    fill(a, [](int m, int k) { return a_of(m, k); });
    fill(b, [](int r, int c) { return BMajor == Major::K ? b_of(r, c) : b_of(c, r); });
    fence_async_proxy();
    __syncthreads();

    FragmentA fragments[kK / 16];
    if constexpr (FromRegisters)
        for (int k = 0; k < kK; k += 16) fragments[k / 16] = load_wgmma_a(a, kRow, k);
    float c[N / 2];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2 * kK / 16; ++i) {
        const int k = i * 16 % kK;
        const WgmmaDescriptor right = [&] {
            if constexpr (BMajor == Major::K)
                return k_major(b) + k_offset<TileB>(k);
            else
                return mn_major(b) + 64 * k;
        }();
        if constexpr (FromRegisters)
            wgmma_rs<BMajor>(c, fragments[k / 16], right, i > 0);
        else
            wgmma_ss<BMajor>(c, k_major(a, kRow) + k_offset<TileA>(k), right, i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(c);
    store<N>(c, to);
#endif
}

// to [64,D] = bf16(A B^T) V with A [64,64], B = V^T: the first result is an operand of the second product as it stands.
template <int D>
__global__ void chained_kernel(float* to) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    const WgmmaTile<64, 64> a{reinterpret_cast<__nv_bfloat16*>(shared)}, b{a.data + 64 * 64};
    const WgmmaTile<64, D> v{b.data + 64 * 64};
    fill(a, [](int m, int k) { return m == k ? 1.0f : 0.0f; });
    fill(b, [](int n, int k) { return a_of(k, n); });
    fill(v, [](int k, int n) { return b_of(n, k); });
    fence_async_proxy();
    __syncthreads();
    float s[32], c[D / 2] = {};
    wgmma_fence();
    multiply_rows<64>(s, a, 0, b);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(s);
    FragmentA p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = wgmma_operand(s, i);
    wgmma_fence();
    accumulate_rows<64, D>(c, p, v);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_settle(c);
    store<D>(c, to);
#endif
}

// to [128,D] = rows t .. t + 127 of head (b, h)
template <int D>
__global__ void copy_kernel(const __grid_constant__ CUtensorMap map, int t, int h, int b, float* to) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ Barrier full;
    const WgmmaTile<128, D> tile{reinterpret_cast<__nv_bfloat16*>(shared)};
    if (threadIdx.x == 0) full.init(1), fence_barriers();
    __syncthreads();
    if (threadIdx.x == 0) full.expect(tile.kBytes), copy_tile(tile, map, t, h, b, full);
    full.wait(0);
    for (int i = threadIdx.x; i < 128 * D; i += blockDim.x)
        to[i] = __bfloat162float(tile.chunk(i / D, i % D / 8 * 8)[i % 8]);
#endif
}

class Wgmma : public ::testing::Test {
  protected:
    void SetUp() override {
        cudaFuncAttributes attributes{};
        const bool runs = cuda::device_count() > 0 &&
                          cudaFuncGetAttributes(&attributes, copy_kernel<64>) == cudaSuccess &&
                          attributes.sharedSizeBytes > 0;
        cudaGetLastError();
        if (!runs) GTEST_SKIP() << "there is no CUDA device that runs this build's code for sm_90a";
    }
    // What a kernel leaves in [rows, columns].
    template <class... Parameters, class... Arguments>
    static std::vector<float> run(void (*kernel)(Parameters...), int rows, int columns, Arguments... arguments) {
        const Device device{DeviceType::cuda, 0};
        const Stream stream = current_stream(device);
        Tensor to = Tensor::full({rows, columns}, NAN, DType::f32, device);
        constexpr int kBytes = 96 * 1024;
        allow_shared_memory(kernel, kBytes);
        kernel<<<1, kWarpgroup, kBytes, cuda::handle_of(stream)>>>(arguments..., device_data<float>(to.view()));
        LC_LAUNCHED("wgmma_test", cuda::handle_of(stream));
        return to.to_vector<float>();
    }
    static void expect_equal(const std::vector<float>& got, int columns,
                             const std::function<double(int, int)>& expected) {
        int wrong = 0;
        for (size_t i = 0; i < got.size() && wrong < 5; ++i) {
            const int row = static_cast<int>(i) / columns, column = static_cast<int>(i) % columns;
            if (got[i] == expected(row, column)) continue;
            ADD_FAILURE() << "[" << row << ", " << column << "] is " << got[i] << ", expected "
                          << expected(row, column);
            ++wrong;
        }
    }
    template <int N, bool FromRegisters, Major BMajor>
    static void check_product() {
        SCOPED_TRACE(testing::Message() << "n " << N << (FromRegisters ? ", A in registers" : ", A in shared memory")
                                        << (BMajor == Major::K ? ", B K-major" : ", B MN-major"));
        expect_equal(run(product_kernel<N, FromRegisters, BMajor>, 64, N), N, [](int m, int n) {
            double sum = 0;
            for (int k = 0; k < 128; ++k) sum += a_of(kRow + m, k) * b_of(n, k);
            return 2 * sum;
        });
    }
    template <int D>
    static void check_chain() {
        SCOPED_TRACE(testing::Message() << "D " << D);
        expect_equal(run(chained_kernel<D>, 64, D), D, [](int m, int n) {
            double sum = 0;
            for (int k = 0; k < 64; ++k) sum += a_of(m, k) * b_of(n, k);
            return sum;
        });
    }
    // Heads of a tensor that lies as [B,T,H,D]; from position t on there are 128 rows or fewer.
    template <int D>
    static void check_copy(int t) {
        SCOPED_TRACE(testing::Message() << "D " << D << ", from " << t);
        const Device device{DeviceType::cuda, 0};
        constexpr int kB = 2, kT = 200, kH = 3;
        const auto value = [](int b, int position, int h, int c) {
            return static_cast<float>((b * 31 + position * 7 + h * 17 + c * 3 + position * c) % 251 - 125);
        };
        std::vector<float> values;
        for (int i = 0; i < kB * kT * kH * D; ++i)
            values.push_back(value(i / D / kH / kT, i / D / kH % kT, i / D % kH, i % D));
        const Tensor x = Tensor::from(values, {kB, kT, kH, D}).to(DType::bf16).to(device);
        Layout layout = x.layout();
        std::swap(layout.shape[1], layout.shape[2]), std::swap(layout.strides[1], layout.strides[2]);
        const CUtensorMap map = head_map(x.with_layout(layout).view());
        for (const auto& [h, b] : {std::pair{0, 0}, {2, 0}, {1, 1}})
            expect_equal(run(copy_kernel<D>, 128, D, map, t, h, b), D,
                         [&](int row, int c) { return t + row < kT ? value(b, t + row, h, c) : 0.0f; });
    }
};

TEST_F(Wgmma, MultipliesFromSharedMemory) {
    check_product<64, false, Major::K>();
    check_product<128, false, Major::K>();
    check_product<256, false, Major::K>();
    check_product<64, false, Major::MN>();
    check_product<128, false, Major::MN>();
    check_product<256, false, Major::MN>();
}

TEST_F(Wgmma, MultipliesFromRegisters) {
    check_product<64, true, Major::K>();
    check_product<128, true, Major::K>();
    check_product<64, true, Major::MN>();
    check_product<128, true, Major::MN>();
}

TEST_F(Wgmma, TakesAResultAsOperand) {
    check_chain<64>();
    check_chain<128>();
}

TEST_F(Wgmma, ReadsCopiedTiles) {
    for (const int t : {0, 64, 72, 192}) {
        check_copy<64>(t);
        check_copy<128>(t);
    }
}

}  // namespace
}  // namespace lc::kernels
