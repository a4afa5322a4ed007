// Where the noise of a run is: seed, stream, direction, and the round keys made once.

struct Address {
    uint64_t seed;
    uint32_t stream, direction;
    uint32_t keys[2 * blockzo::philox_rounds];

    Address(uint64_t seed, uint32_t stream, uint32_t direction) : seed(seed), stream(stream), direction(direction) {
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < blockzo::philox_rounds; ++round) {
            keys[2 * round] = k0;
            keys[2 * round + 1] = k1;
            k0 += blockzo::philox_w0;
            k1 += blockzo::philox_w1;
        }
    }
};

// The two halves of the 64-bit block numbers base + order[lane].
template <int width>
BLOCKZO_INLINE void split_counters(uint64_t base, const uint32_t* order, uint32_t* low, uint32_t* high) {
    for (int lane = 0; lane < width; ++lane) {
        const uint64_t block = base + order[lane];
        low[lane] = static_cast<uint32_t>(block);
        high[lane] = static_cast<uint32_t>(block >> 32);
    }
}
