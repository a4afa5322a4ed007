// The operations over lists of tensors: cut into pieces of whole blocks, shared among threads, handed to the chosen kernels.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "blockzo/cpu.h"
#include "layout.h"
#include "table.h"
#include "threads.h"

namespace blockzo {
namespace {

// Elements that a misaligned or strided run is gathered into; a multiple of block_size.
constexpr int64_t buffer_size = 4096;
// Below this many elements times terms a second thread costs more than it brings.
constexpr int64_t worth_a_thread = 1 << 14;

Plan plan_of(const Step& step) {
    return {step.seed, step.distribution, step.terms.data(), step.terms.size(), step.factor, step.stochastic};
}

void need_one_term(const Step& step) {
    if (step.terms.size() != 1) throw std::invalid_argument(std::to_string(step.terms.size()) + " terms; expected one");
}

// What is done to whole blocks of dense memory.
class Kernel {
  public:
    virtual ~Kernel() = default;
    virtual void blocks(void* out, const void* in, uint64_t block, int64_t count, uint32_t stream) const = 0;
    Dtype out_dtype = Dtype::float32, in_dtype = Dtype::float32;
};

class MoveKernel final : public Kernel {
  public:
    MoveKernel(const Step& step, Move how) : plan_(plan_of(step)), how_(how) {
        // for a Rademacher term that is not 0 the three are one addition
        const bool plain = step.distribution == Distribution::rademacher && step.factor == 1.0f && step.terms[0].coefficient != 0.0f;
        if (plain && how != Move::perturb) {
            term_ = step.terms[0];
            if (how == Move::update) term_.coefficient = -term_.coefficient;
            plan_.terms = &term_;
            how_ = Move::perturb;
        }
    }
    void blocks(void* out, const void* in, uint64_t block, int64_t count, uint32_t stream) const override {
        kernels().move(out, out_dtype, in, in_dtype, block, count, stream, plan_, how_);
    }

  private:
    Term term_{};
    Plan plan_;
    Move how_;
};

class ReplayKernel final : public Kernel {
  public:
    ReplayKernel(std::vector<Plan> plans, bool add) : plans_(std::move(plans)), add_(add) {}
    void blocks(void* out, const void* in, uint64_t block, int64_t count, uint32_t stream) const override {
        kernels().replay(out, in, in_dtype, block, count, stream, plans_.data(), plans_.size(), add_);
    }

  private:
    std::vector<Plan> plans_;
    bool add_;
};

// A run whose ends do not fall on block boundaries, by way of a buffer of whole blocks.
template <class Read, class Write>
void by_buffer(const Kernel& kernel, int64_t index, int64_t count, uint32_t stream, Read read, Write write) {
    alignas(64) unsigned char in[buffer_size * 4], out[buffer_size * 4];
    const int64_t in_size = element_size(kernel.in_dtype), out_size = element_size(kernel.out_dtype);
    while (count > 0) {
        const int64_t head = index % block_size, held = std::min(count, buffer_size - head);
        const int64_t whole = (head + held + block_size - 1) / block_size;
        std::memset(in, 0, static_cast<size_t>(whole * block_size * in_size));
        read(in + head * in_size, held);
        kernel.blocks(out, in, static_cast<uint64_t>(index / block_size), whole, stream);
        write(out + head * out_size, held);
        index += held;
        count -= held;
    }
}

// A dense run of `count` elements from logical index `index`; `out` may be `in`.
void dense(const Kernel& kernel, unsigned char* out, const unsigned char* in, int64_t index, int64_t count, uint32_t stream) {
    const int64_t in_size = element_size(kernel.in_dtype), out_size = element_size(kernel.out_dtype);
    const auto buffered = [&](int64_t length) {
        by_buffer(
            kernel, index, length, stream,
            [&](void* buffer, int64_t held) {
                std::memcpy(buffer, in, static_cast<size_t>(held * in_size));
                in += held * in_size;
            },
            [&](const void* buffer, int64_t held) {
                std::memcpy(out, buffer, static_cast<size_t>(held * out_size));
                out += held * out_size;
            });
        index += length;
        count -= length;
    };
    const int64_t head = index % block_size;
    // one call of the kernel costs less than a copied head, a body and a copied tail
    if (head + count <= buffer_size / 2 && (head != 0 || count % block_size != 0)) return buffered(count);
    if (head != 0) buffered(std::min(count, block_size - head));
    const int64_t whole = count / block_size;
    if (whole > 0) {
        kernel.blocks(out, in, static_cast<uint64_t>(index / block_size), whole, stream);
        in += whole * block_size * in_size;
        out += whole * block_size * out_size;
        index += whole * block_size;
        count -= whole * block_size;
    }
    if (count > 0) buffered(count);
}

// Elements of one piece, a multiple of block_size: small enough to share out evenly, large enough to stream.
int64_t piece_size(int64_t total, int threads) {
    const int64_t even = total / (std::max(threads, 1) * int64_t{16});
    return std::clamp((even + buffer_size - 1) / buffer_size * buffer_size, buffer_size, int64_t{1} << 16);
}

// Runs an operation in place over all tensors; the pieces of all of them are shared out together.
template <class Body>
void over_tensors(const std::vector<Tensor>& tensors, int64_t cost, int threads, Body body) {
    std::vector<Layout> layouts;
    int64_t total = 0;
    for (const Tensor& tensor : tensors) {
        layouts.emplace_back(tensor.sizes, tensor.strides);
        total += layouts.back().count();
    }
    const int64_t size = piece_size(total, threads);
    std::vector<int64_t> ends;
    for (const Layout& layout : layouts) ends.push_back((ends.empty() ? 0 : ends.back()) + (layout.count() + size - 1) / size);
    if (total < worth_a_thread / std::max<int64_t>(cost, 1)) threads = 1;
    parallel(ends.empty() ? 0 : ends.back(), threads, [&](int64_t piece) {
        const size_t which = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin());
        const int64_t start = (piece - (which == 0 ? 0 : ends[which - 1])) * size;
        body(tensors[which], layouts[which], start, std::min(size, layouts[which].count() - start));
    });
}

void in_place(const std::vector<Tensor>& tensors, const Kernel& like, int64_t cost, int threads,
              const std::function<std::unique_ptr<Kernel>(Dtype)>& make);

}  // namespace
}  // namespace blockzo
