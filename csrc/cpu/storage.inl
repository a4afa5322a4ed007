// How weights lie in memory: `Value` in memory, float32 in registers; `round` is what a store followed by a load would give.

struct Float32 {
    using Value = float;
    static BLOCKZO_INLINE Simd::F load(const Value* p) { return Simd::load(p); }
    static BLOCKZO_INLINE void store(Value* p, Simd::F a) { Simd::store(p, a); }
    static BLOCKZO_INLINE Simd::F round(Simd::F a) { return a; }
    static BLOCKZO_INLINE Simd::F stochastic(Simd::F a, Simd::U) { return a; }
    static constexpr bool narrow = false;
};

struct Bfloat16 {
    using Value = uint16_t;
    static BLOCKZO_INLINE Simd::F load(const Value* p) { return Simd::load_bfloat16(p); }
    static BLOCKZO_INLINE void store(Value* p, Simd::F a) { Simd::store_bfloat16(p, a); }
    static BLOCKZO_INLINE Simd::F round(Simd::F a) { return Simd::round_bfloat16(a); }
    static BLOCKZO_INLINE Simd::F stochastic(Simd::F a, Simd::U n) { return Simd::stochastic_bfloat16(a, n); }
    static constexpr bool narrow = true;
};

struct Float16 {
    using Value = uint16_t;
    static BLOCKZO_INLINE Simd::F load(const Value* p) { return Simd::load_float16(p); }
    static BLOCKZO_INLINE void store(Value* p, Simd::F a) { Simd::store_float16(p, a); }
    static BLOCKZO_INLINE Simd::F round(Simd::F a) { return Simd::round_float16(a); }
    // the stochastic value is exact in float16, or rounds to infinity
    static BLOCKZO_INLINE Simd::F stochastic(Simd::F a, Simd::U n) { return Simd::round_float16(Simd::stochastic_float16(a, n)); }
    static constexpr bool narrow = true;
};

// A float32 copy of weights of `Storage` that holds only values which `Storage` can hold.
template <class Storage>
struct Mirror {
    using Value = float;
    static BLOCKZO_INLINE Simd::F load(const Value* p) { return Simd::load(p); }
    static BLOCKZO_INLINE void store(Value* p, Simd::F a) { Simd::store(p, Storage::round(a)); }
};
