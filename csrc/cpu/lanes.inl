// "Vectors" of plain C++: every lane by the scalar definition. What a machine without a faster source falls back to.

#define BLOCKZO_LANES(expression)                                    \
    for (int l = 0; l < width; ++l) {                                \
        expression;                                                  \
    }

struct Simd {
    static constexpr int width = 8;
    struct F {
        float v[width];
    };
    struct U {
        uint32_t v[width];
    };

    static BLOCKZO_INLINE F load(const float* p) { F r; BLOCKZO_LANES(r.v[l] = p[l]) return r; }
    static BLOCKZO_INLINE void store(float* p, F a) { BLOCKZO_LANES(p[l] = a.v[l]) }
    static BLOCKZO_INLINE void store_u(uint32_t* p, U a) { BLOCKZO_LANES(p[l] = a.v[l]) }
    static BLOCKZO_INLINE U load_u16(const uint16_t* p) { U r; BLOCKZO_LANES(r.v[l] = p[l]) return r; }
    static BLOCKZO_INLINE F set(float a) { F r; BLOCKZO_LANES(r.v[l] = a) return r; }
    static BLOCKZO_INLINE F add(F a, F b) { F r; BLOCKZO_LANES(r.v[l] = a.v[l] + b.v[l]) return r; }
    static BLOCKZO_INLINE F sub(F a, F b) { F r; BLOCKZO_LANES(r.v[l] = a.v[l] - b.v[l]) return r; }
    static BLOCKZO_INLINE F mul(F a, F b) { F r; BLOCKZO_LANES(r.v[l] = a.v[l] * b.v[l]) return r; }

    static BLOCKZO_INLINE F flip(F c, uint32_t word, int part) {
        F r;
        BLOCKZO_LANES(r.v[l] = blockzo::float_of(blockzo::bits_of(c.v[l]) ^ (((word >> (part * width + l)) & 1u) << 31)))
        return r;
    }

    static BLOCKZO_INLINE void words(uint64_t base, const Address& at, U x[4]) {
        BLOCKZO_LANES(
            const blockzo::Words w = blockzo::philox(base + static_cast<uint64_t>(l), at.stream, at.direction, at.seed);
            for (int k = 0; k < 4; ++k) x[k].v[l] = w.x[k])
    }

    // x[p] lane l is word 8p + l of the sequence block 0 word 0, block 0 word 1, ...
    static BLOCKZO_INLINE void ordered_words(uint64_t base, const Address& at, U x[4]) {
        BLOCKZO_LANES(
            const blockzo::Words w = blockzo::philox(base + static_cast<uint64_t>(l), at.stream, at.direction, at.seed);
            for (int k = 0; k < 4; ++k) x[l / 2].v[4 * (l % 2) + k] = w.x[k])
    }

    static BLOCKZO_INLINE void pairs(U w, F& low, F& high) {
        float both[2 * width];
        BLOCKZO_LANES(const blockzo::Pair pair = blockzo::gaussian_pair(w.v[l]); both[2 * l] = pair.even; both[2 * l + 1] = pair.odd)
        low = load(both);
        high = load(both + width);
    }

    static BLOCKZO_INLINE F load_bfloat16(const uint16_t* p) { F r; BLOCKZO_LANES(r.v[l] = blockzo::from_bfloat16(p[l])) return r; }
    static BLOCKZO_INLINE void store_bfloat16(uint16_t* p, F a) { BLOCKZO_LANES(p[l] = blockzo::to_bfloat16(a.v[l])) }
    static BLOCKZO_INLINE F round_bfloat16(F a) {
        F r;
        BLOCKZO_LANES(r.v[l] = blockzo::from_bfloat16(blockzo::to_bfloat16(a.v[l])))
        return r;
    }
    static BLOCKZO_INLINE F load_float16(const uint16_t* p) { F r; BLOCKZO_LANES(r.v[l] = blockzo::from_float16(p[l])) return r; }
    static BLOCKZO_INLINE void store_float16(uint16_t* p, F a) { BLOCKZO_LANES(p[l] = blockzo::to_float16(a.v[l])) }
    static BLOCKZO_INLINE F round_float16(F a) {
        F r;
        BLOCKZO_LANES(r.v[l] = blockzo::from_float16(blockzo::to_float16(a.v[l])))
        return r;
    }
    static BLOCKZO_INLINE F stochastic_bfloat16(F a, U n) {
        F r;
        BLOCKZO_LANES(r.v[l] = blockzo::stochastic_bfloat16(a.v[l], n.v[l]))
        return r;
    }
    static BLOCKZO_INLINE F stochastic_float16(F a, U n) {
        F r;
        BLOCKZO_LANES(r.v[l] = blockzo::stochastic_float16(a.v[l], n.v[l]))
        return r;
    }
};

#undef BLOCKZO_LANES
