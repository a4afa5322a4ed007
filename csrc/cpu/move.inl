// One term met by the weight on its way through the registers: read, moved, rounded, written.

template <class Out, class In, blockzo::Move how>
struct MoveSink {
    typename Out::Value* out;
    const typename In::Value* in;
    Simd::F factor, zero;

    BLOCKZO_INLINE void take(int64_t position, Simd::F cz) const {
        const Simd::F w = In::load(in + position);
        if (how == blockzo::Move::perturb) {
            Out::store(out + position, Simd::add(w, cz));
        } else if (how == blockzo::Move::shift) {
            Out::store(out + position, Simd::add(w, Simd::add(zero, cz)));
        } else {
            Out::store(out + position, Simd::sub(Simd::mul(w, factor), Simd::add(zero, cz)));
        }
    }
};

template <class Out, class In, blockzo::Move how>
void move_as(typename Out::Value* out, const typename In::Value* in, uint64_t block, int64_t blocks, uint32_t stream,
             const blockzo::Plan& plan) {
    const Address at(plan.seed, stream, plan.terms[0].direction);
    const MoveSink<Out, In, how> sink{out, in, Simd::set(plan.factor), Simd::set(0.0f)};
    generate(plan.distribution, at, plan.terms[0].coefficient, block, blocks, sink);
}

template <class Out, class In>
void move_how(void* out, const void* in, uint64_t block, int64_t blocks, uint32_t stream, const blockzo::Plan& plan, blockzo::Move how) {
    auto* to = static_cast<typename Out::Value*>(out);
    const auto* from = static_cast<const typename In::Value*>(in);
    switch (how) {
        case blockzo::Move::perturb: return move_as<Out, In, blockzo::Move::perturb>(to, from, block, blocks, stream, plan);
        case blockzo::Move::shift: return move_as<Out, In, blockzo::Move::shift>(to, from, block, blocks, stream, plan);
        case blockzo::Move::update: return move_as<Out, In, blockzo::Move::update>(to, from, block, blocks, stream, plan);
    }
}

void move(void* out, blockzo::Dtype out_dtype, const void* in, blockzo::Dtype in_dtype, uint64_t block, int64_t blocks, uint32_t stream,
          const blockzo::Plan& plan, blockzo::Move how) {
    switch (in_dtype) {
        case blockzo::Dtype::float32: return move_how<Float32, Float32>(out, in, block, blocks, stream, plan, how);
        case blockzo::Dtype::bfloat16:
            // only a copy widens, and a copy only perturbs
            return out_dtype == in_dtype
                       ? move_how<Bfloat16, Bfloat16>(out, in, block, blocks, stream, plan, how)
                       : move_as<Float32, Bfloat16, blockzo::Move::perturb>(static_cast<float*>(out), static_cast<const uint16_t*>(in),
                                                                            block, blocks, stream, plan);
        case blockzo::Dtype::float16:
            return out_dtype == in_dtype
                       ? move_how<Float16, Float16>(out, in, block, blocks, stream, plan, how)
                       : move_as<Float32, Float16, blockzo::Move::perturb>(static_cast<float*>(out), static_cast<const uint16_t*>(in),
                                                                           block, blocks, stream, plan);
    }
}
