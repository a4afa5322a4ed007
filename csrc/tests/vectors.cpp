// Checks noise and kernels without Python: reads cases with the results that the reference gave and compares every compiled
// instruction set that this CPU has, bit for bit. tests/packaging/test_vectors_program.py writes the cases, one a line:
//
//   noise     distribution stream seed direction start count  bits...
//   perturb | shift | update   tensor  steps  values of the memory afterwards...
//   copy      tensor  start  steps  values...
//   rows      tensor  count rows...  steps  values...
//   project   tensor  steps  float64 bits...
//   linear    x [groups, tokens, width]  weight [rows, width]  bias [groups, rows]  start  narrow (0 or 1)  steps  values of the product...
//
// linear@PATH holds sums of that instruction set's own rounding; the others pass it by.
// tensor: dtype stream ndim sizes... strides... memory-count values...     steps: count step...
// step: seed distribution[:rank:width] factor-bits flags (1 stochastic, 2 joins) terms (direction coefficient-bits)...
//
// With BLOCKZO_HEADERS_ONLY only the noise headers are used: that is what nvcc compiles.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "blockzo/gaussian.h"
#if !defined(BLOCKZO_HEADERS_ONLY)
#include "blockzo/cpu.h"
#endif

#if defined(__CUDACC__)
// the device half of the headers, for `nvcc -cubin` and `nvcc -ptx`
__global__ void noise_on_device(float* out, uint64_t seed, uint32_t stream, uint32_t direction) {
  const uint64_t i = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
  const float z = gaussian_at(i, seed, stream, direction);
  out[i] = ScalarFloat::add(ScalarFloat::mul(z, 0.5f), rademacher_at(i, seed, stream, direction));
}
#endif

namespace {

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

int failures = 0;
int comparisons = 0;

void compare(const std::string& path, int line, const std::vector<uint64_t>& found, const std::vector<uint64_t>& expected) {
    ++comparisons;
    for (size_t i = 0; i < expected.size() || i < found.size(); ++i) {
        if (i < found.size() && i < expected.size() && found[i] == expected[i]) continue;
        ++failures;
        std::printf("%s, line %d, value %zu: found %" PRIx64 ", expected %" PRIx64 "\n", path.c_str(), line, i,
                    i < found.size() ? found[i] : 0, i < expected.size() ? expected[i] : 0);
        return;
    }
}

// The words of one line.
class Case {
public:
    explicit Case(const std::string& text) : words_(text) {}
    std::string text() {
        std::string word;
        if (!(words_ >> word)) throw std::runtime_error("a case ends too early");
        return word;
    }
    uint64_t number() { return std::stoull(text()); }
    uint64_t hex() { return std::stoull(text(), nullptr, 16); }
    float real() { return float_of(static_cast<uint32_t>(hex())); }
    bool gaussian() { return text() == "gaussian"; }
    std::vector<uint64_t> rest() {
        std::vector<uint64_t> values;
        for (std::string word; words_ >> word;) values.push_back(std::stoull(word, nullptr, 16));
        return values;
    }

private:
    std::istringstream words_;
};

// The address at the head of a noise case.
struct Address {
    bool gaussian;
    uint32_t stream, direction;
    uint64_t seed, start, count;

    explicit Address(Case& words) {
        gaussian = words.gaussian();
        stream = static_cast<uint32_t>(words.number());
        seed = words.number();
        direction = static_cast<uint32_t>(words.number());
        start = words.number();
        count = words.number();
    }
};

void check_headers(Case& words, int line) {
    const Address at(words);
    std::vector<uint64_t> found;
    for (uint64_t i = at.start; i < at.start + at.count; ++i) {
        const float z = at.gaussian ? gaussian_at(i, at.seed, at.stream, at.direction)
                                    : rademacher_at(i, at.seed, at.stream, at.direction);
        found.push_back(bits_of(z));
    }
    compare("headers", line, found, words.rest());
}

#if !defined(BLOCKZO_HEADERS_ONLY)

// A tensor with memory of its own.
struct Owned {
    blockzo::View view;
    std::vector<float> wide;
    std::vector<uint16_t> narrow;

    explicit Owned(Case& words) {
        const std::string dtype = words.text();
        view.dtype = dtype == "float32" ? blockzo::FLOAT32 : dtype == "bfloat16" ? blockzo::BFLOAT16 : blockzo::FLOAT16;
        view.stream = static_cast<uint32_t>(words.number());
        const uint64_t dimensions = words.number();
        for (uint64_t d = 0; d < dimensions; ++d) view.sizes.push_back(static_cast<int64_t>(words.number()));
        for (uint64_t d = 0; d < dimensions; ++d) view.strides.push_back(static_cast<int64_t>(words.number()));
        const uint64_t count = words.number();
        resize(count);
        for (uint64_t i = 0; i < count; ++i) {
            if (is_wide()) {
                wide[i] = words.real();
            } else {
                narrow[i] = static_cast<uint16_t>(words.hex());
            }
        }
        view.data = data();
    }
    bool is_wide() const { return view.dtype == blockzo::FLOAT32; }
    void resize(size_t count) { is_wide() ? wide.resize(count) : narrow.resize(count); }
    int64_t count() const { return static_cast<int64_t>(wide.size() + narrow.size()); }
    void* data() { return is_wide() ? static_cast<void*>(wide.data()) : static_cast<void*>(narrow.data()); }
    std::vector<uint64_t> bits() const {
        std::vector<uint64_t> values(narrow.begin(), narrow.end());
        for (float value : wide) values.push_back(bits_of(value));
        return values;
    }
};

std::vector<blockzo::Step> read_steps(Case& words) {
    std::vector<blockzo::Step> steps(words.number());
    for (auto& step : steps) {
        step.seed = words.number();
        const std::string kind = words.text();
        step.distribution = kind.rfind("gaussian", 0) == 0 ? blockzo::GAUSSIAN : blockzo::RADEMACHER;
        const size_t rank = kind.find(':'), width = kind.rfind(':');
        if (rank != std::string::npos) {
            step.rank = std::stoi(kind.substr(rank + 1, width - rank - 1));
            step.width = std::stoll(kind.substr(width + 1));
        }
        step.factor = words.real();
        const int flags = (int)words.number();
        step.stochastic = flags & 1;
        step.joins = flags & 2;
        for (uint64_t terms = words.number(); terms > 0; --terms) {
            step.directions.push_back(static_cast<uint32_t>(words.number()));
            step.coefficients.push_back(words.real());
        }
    }
    return steps;
}

std::vector<uint64_t> run_kernel(const std::string& kind, Case& words, int threads, std::vector<uint64_t>& expected) {
    if (kind == "noise") {
        const Address at(words);
        std::vector<float> out(at.count, -7.0f);
        blockzo::sample(out.data(), static_cast<int64_t>(at.count), static_cast<int64_t>(at.start), at.seed,
                        at.gaussian ? blockzo::GAUSSIAN : blockzo::RADEMACHER, at.stream, at.direction, threads);
        expected = words.rest();
        std::vector<uint64_t> found;
        for (float value : out) found.push_back(bits_of(value));
        return found;
    }
    Owned memory(words);
    const blockzo::View& view = memory.view;
    if (kind == "copy") {
        const auto start = static_cast<int64_t>(words.number());
        const auto steps = read_steps(words);
        Owned out = memory;
        blockzo::copy(out.data(), view.dtype, memory.data(), view.dtype, memory.count(), start, steps[0], view.stream, threads);
        expected = words.rest();
        return out.bits();
    }
    if (kind == "rows") {
        std::vector<int64_t> rows(words.number());
        for (auto& row : rows) row = static_cast<int64_t>(words.number());
        const auto steps = read_steps(words);
        const int64_t width = view.sizes[1];
        Owned out = memory;
        out.resize(rows.size() * static_cast<size_t>(width));
        blockzo::rows(out.data(), memory.data(), view.dtype, width, rows.data(), static_cast<int64_t>(rows.size()), steps[0],
                      view.stream, threads);
        expected = words.rest();
        return out.bits();
    }
    if (kind == "linear") {
        const Owned weight(words), bias(words);
        const auto start = static_cast<int64_t>(words.number());
        const bool narrow = words.number() != 0;
        const auto steps = read_steps(words);
        Owned out = memory;
        const int64_t groups = view.sizes[0], tokens = view.sizes[1], rows = weight.view.sizes[0], apart = weight.view.strides[0];
        out.resize(static_cast<size_t>(groups * tokens * rows));
        blockzo::linear({groups, tokens, rows, view.sizes[2], view.data, view.dtype, view.strides[0], view.strides[1], weight.view.data,
                         weight.view.dtype, apart, nullptr, start, apart, bias.view.data, bias.view.dtype, bias.view.strides[0],
                         out.data(), narrow},
                        steps[0], weight.view.stream, threads);
        expected = words.rest();
        return out.bits();
    }
    const auto steps = read_steps(words);
    expected = words.rest();
    if (kind == "project") {
        std::vector<double> sums(steps[0].directions.size());
        blockzo::project(view, steps[0], sums.data(), threads);
        std::vector<uint64_t> found;
        for (double value : sums) {
            uint64_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            found.push_back(bits);
        }
        return found;
    }
    if (kind != "perturb" && kind != "shift" && kind != "update") throw std::runtime_error("unknown kind of case: " + kind);
    const blockzo::Mode mode = kind == "perturb" ? blockzo::PERTURB : kind == "shift" ? blockzo::SHIFT : blockzo::UPDATE;
    blockzo::apply({view}, steps, mode, threads);
    return memory.bits();
}

void check_kernels(const std::string& given, const std::string& text, int line) {
    const size_t at = given.find('@');
    const std::string kind = given.substr(0, at), only = at == std::string::npos ? "" : given.substr(at + 1);
    for (const std::string& path : blockzo::available()) {
        if (!only.empty() && path != only) continue;
        blockzo::choose(path);
        for (int threads : {1, 3}) {
            Case words(text);
            words.text();
            std::vector<uint64_t> expected;
            const auto found = run_kernel(kind, words, threads, expected);
            compare(path + " with " + std::to_string(threads) + " threads", line, found, expected);
        }
    }
}

// A set that is compiled and that this CPU lacks.
void check_refusals() {
    const auto here = blockzo::available();
    for (const std::string& path : blockzo::compiled()) {
        if (std::find(here.begin(), here.end(), path) != here.end()) continue;
        const std::string before = blockzo::chosen();
        try {
            blockzo::choose(path);
        } catch (const std::invalid_argument&) {
        }
        failures += blockzo::chosen() != before;
        std::printf("refused %s\n", path.c_str());
    }
}

#endif

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::printf("usage: %s CASES\n", arguments[0]);
        return 2;
    }
#if !defined(BLOCKZO_HEADERS_ONLY)
    std::printf("chosen %s\n", blockzo::chosen().c_str());
    check_refusals();
#endif
    std::ifstream file(arguments[1]);
    int line = 0;
    try {
        for (std::string text; std::getline(file, text);) {
            Case words(text);
            const std::string kind = words.text();
            ++line;
            if (kind == "noise") check_headers(words, line);
#if !defined(BLOCKZO_HEADERS_ONLY)
            check_kernels(kind, text, line);
#endif
        }
    } catch (const std::exception& error) {
        std::printf("line %d: %s\n", line + 1, error.what());
        return 2;
    }
#if !defined(BLOCKZO_HEADERS_ONLY)
    for (const std::string& path : blockzo::available()) std::printf("path %s\n", path.c_str());
#endif
    std::printf("%d lines, %d comparisons, %d failures\n", line, comparisons, failures);
    return line == 0 || failures ? 1 : 0;
}
