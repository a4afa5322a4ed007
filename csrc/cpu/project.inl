// <w, z_k> over one chunk: 16 float64 lanes, then folded in half (docs/noise.md, "Projection").

struct NoiseSink {
    float* z;
    BLOCKZO_INLINE void take(int64_t position, Simd::F value) const { Simd::store(z + position, value); }
};

BLOCKZO_INLINE double lane_sum(const float* w, const float* z, int64_t count) {
    constexpr int lanes = 16;
    double sums[lanes] = {};
    for (int64_t i = 0; i < count; i += lanes) {
        for (int l = 0; l < lanes; ++l) sums[l] += static_cast<double>(w[i + l]) * static_cast<double>(z[i + l]);
    }
    for (int half = lanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    return sums[0];
}

template <class Storage>
void project_as(const typename Storage::Value* in, uint64_t block, int64_t blocks, uint32_t stream, const blockzo::Plan& plan,
                double* sums) {
    alignas(64) float weight[blockzo::project_chunk];
    alignas(64) float z[blockzo::project_chunk];
    const int64_t count = blocks * blockzo::block_size;
    for (int64_t i = 0; i < count; i += Simd::width) Simd::store(weight + i, Storage::load(in + i));
    for (size_t k = 0; k < plan.count; ++k) {
        generate(plan.distribution, Address(plan.seed, stream, plan.terms[k].direction), 1.0f, block, blocks, NoiseSink{z});
        sums[k] = lane_sum(weight, z, count);
    }
}

void project(const void* in, blockzo::Dtype dtype, uint64_t block, int64_t blocks, uint32_t stream, const blockzo::Plan& plan, double* sums) {
    switch (dtype) {
        case blockzo::Dtype::float32: return project_as<Float32>(static_cast<const float*>(in), block, blocks, stream, plan, sums);
        case blockzo::Dtype::bfloat16: return project_as<Bfloat16>(static_cast<const uint16_t*>(in), block, blocks, stream, plan, sums);
        case blockzo::Dtype::float16: return project_as<Float16>(static_cast<const uint16_t*>(in), block, blocks, stream, plan, sums);
    }
}
