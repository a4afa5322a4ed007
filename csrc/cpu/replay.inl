// Many steps in one pass: a tile of weights stays in the first-level cache as float32 and is rounded to storage at every step.

struct FirstSink {
    float* sum;
    Simd::F zero;
    BLOCKZO_INLINE void take(int64_t position, Simd::F cz) const { Simd::store(sum + position, Simd::add(zero, cz)); }
};

struct AddSink {
    float* sum;
    BLOCKZO_INLINE void take(int64_t position, Simd::F cz) const {
        Simd::store(sum + position, Simd::add(Simd::load(sum + position), cz));
    }
};

void weighted_sum(float* sum, uint64_t block, int64_t blocks, uint32_t stream, const blockzo::Plan& plan) {
    if (plan.count == 0) {
        for (int64_t i = 0; i < blocks * blockzo::block_size; ++i) sum[i] = 0.0f;
        return;
    }
    for (size_t k = 0; k < plan.count; ++k) {
        const Address at(plan.seed, stream, plan.terms[k].direction);
        if (k == 0) {
            generate(plan.distribution, at, plan.terms[k].coefficient, block, blocks, FirstSink{sum, Simd::set(0.0f)});
        } else {
            generate(plan.distribution, at, plan.terms[k].coefficient, block, blocks, AddSink{sum});
        }
    }
}

template <class Storage>
struct Tile {
    static constexpr int64_t blocks = Simd::width;
    static constexpr int64_t size = blocks * blockzo::block_size;
    alignas(64) float weight[size];
    alignas(64) float sum[size];
    alignas(64) uint16_t bits[size];

    void step(uint64_t block, int64_t held, uint32_t stream, const blockzo::Plan& plan, bool add) {
        const bool stochastic = Storage::narrow && plan.stochastic;
        if (plan.count == 1 && !stochastic) {
            if (add) {
                move_as<Mirror<Storage>, Mirror<Storage>, blockzo::Move::shift>(weight, weight, block, held, stream, plan);
            } else {
                move_as<Mirror<Storage>, Mirror<Storage>, blockzo::Move::update>(weight, weight, block, held, stream, plan);
            }
            return;
        }
        weighted_sum(sum, block, held, stream, plan);
        if (stochastic) generate_rounding_bits(plan.seed, stream, block, held, bits);
        const Simd::F factor = Simd::set(plan.factor);
        for (int64_t i = 0; i < held * blockzo::block_size; i += Simd::width) {
            const Simd::F w = Simd::load(weight + i), s = Simd::load(sum + i);
            const Simd::F moved = add ? Simd::add(w, s) : Simd::sub(Simd::mul(w, factor), s);
            Simd::store(weight + i, stochastic ? Storage::stochastic(moved, Simd::load_u16(bits + i)) : Storage::round(moved));
        }
    }
};

template <class Storage>
void replay_as(typename Storage::Value* out, const typename Storage::Value* in, uint64_t block, int64_t blocks, uint32_t stream,
               const blockzo::Plan* plans, size_t count, bool add) {
    Tile<Storage> tile;
    for (int64_t done = 0; done < blocks; done += tile.blocks) {
        const int64_t held = blocks - done < tile.blocks ? blocks - done : tile.blocks;
        const int64_t first = done * blockzo::block_size;
        for (int64_t i = 0; i < held * blockzo::block_size; i += Simd::width) {
            Simd::store(tile.weight + i, Storage::load(in + first + i));
        }
        for (size_t k = 0; k < count; ++k) tile.step(block + static_cast<uint64_t>(done), held, stream, plans[k], add);
        for (int64_t i = 0; i < held * blockzo::block_size; i += Simd::width) {
            Storage::store(out + first + i, Simd::load(tile.weight + i));
        }
    }
}

void replay(void* out, const void* in, blockzo::Dtype dtype, uint64_t block, int64_t blocks, uint32_t stream,
            const blockzo::Plan* plans, size_t count, bool add) {
    switch (dtype) {
        case blockzo::Dtype::float32:
            return replay_as<Float32>(static_cast<float*>(out), static_cast<const float*>(in), block, blocks, stream, plans, count, add);
        case blockzo::Dtype::bfloat16:
            return replay_as<Bfloat16>(static_cast<uint16_t*>(out), static_cast<const uint16_t*>(in), block, blocks, stream, plans, count, add);
        case blockzo::Dtype::float16:
            return replay_as<Float16>(static_cast<uint16_t*>(out), static_cast<const uint16_t*>(in), block, blocks, stream, plans, count, add);
    }
}
