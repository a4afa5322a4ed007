// c * z for a run of whole blocks, handed vector by vector, in order, to `sink.take(position, c * z)`.

template <class Sink>
BLOCKZO_INLINE void generate_rademacher(const Address& at, float coefficient, uint64_t block, int64_t blocks, Sink sink) {
    constexpr int width = Simd::width;
    const Simd::F c = Simd::set(coefficient);
    alignas(64) uint32_t words[4 * width];
    for (int64_t done = 0; done < blocks; done += width) {
        Simd::U x[4];
        Simd::words(block + static_cast<uint64_t>(done), at, x);
        for (int k = 0; k < 4; ++k) Simd::store_u(words + k * width, x[k]);
        const int64_t held = blocks - done < width ? blocks - done : width;
        for (int64_t j = 0; j < held; ++j) {
            const int64_t position = (done + j) * blockzo::block_size;
            for (int k = 0; k < 4; ++k) {
                const uint32_t word = words[k * width + j];
                for (int part = 0; part < 32 / width; ++part) {
                    sink.take(position + 32 * k + width * part, Simd::flip(c, word, part));
                }
            }
        }
    }
}

template <class Sink>
BLOCKZO_INLINE void generate_gaussian(const Address& at, float coefficient, uint64_t block, int64_t blocks, Sink sink) {
    constexpr int width = Simd::width;
    const Simd::F c = Simd::set(coefficient);
    const int64_t groups = blocks * 16 / width;
    for (int64_t group = 0; group < groups; ++group) {
        Simd::U x[4];
        Simd::ordered_words(block * 16 + static_cast<uint64_t>(group * width), at, x);
        for (int p = 0; p < 4; ++p) {
            Simd::F low, high;
            Simd::pairs(x[p], low, high);
            const int64_t position = (group * 4 + p) * 2 * width;
            sink.take(position, Simd::mul(c, low));
            sink.take(position + width, Simd::mul(c, high));
        }
    }
}

template <class Sink>
BLOCKZO_INLINE void generate(blockzo::Distribution distribution, const Address& at, float coefficient, uint64_t block, int64_t blocks,
                             Sink sink) {
    if (distribution == blockzo::Distribution::rademacher) {
        generate_rademacher(at, coefficient, block, blocks, sink);
    } else {
        generate_gaussian(at, coefficient, block, blocks, sink);
    }
}

// The words of stochastic rounding, in order: read as 16-bit numbers they are the bits of element after element.
BLOCKZO_INLINE void generate_rounding_bits(uint64_t seed, uint32_t stream, uint64_t block, int64_t blocks, uint16_t* bits) {
    constexpr int width = Simd::width;
    const Address at(seed, stream, blockzo::rounding_direction);
    uint32_t words[width];
    const int64_t groups = blocks * 16 / width;
    for (int64_t group = 0; group < groups; ++group) {
        Simd::U x[4];
        Simd::ordered_words(block * 16 + static_cast<uint64_t>(group * width), at, x);
        for (int p = 0; p < 4; ++p) {
            Simd::store_u(words, x[p]);
            for (int l = 0; l < width; ++l) {
                // halves by arithmetic, so that the order does not hang on the byte order of the machine
                *bits++ = static_cast<uint16_t>(words[l]);
                *bits++ = static_cast<uint16_t>(words[l] >> 16);
            }
        }
    }
}
