#include "layout.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace blockzo {

int64_t element_size(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

Layout::Layout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    if (sizes.size() != strides.size()) {
        throw std::invalid_argument(std::to_string(sizes.size()) + " sizes and " + std::to_string(strides.size()) +
                                    " strides; expected one stride for each size");
    }
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] < 0) throw std::invalid_argument("size " + std::to_string(sizes[d]) + "; expected none below zero");
        if (__builtin_mul_overflow(count_, sizes[d], &count_)) throw std::invalid_argument("more than 2**63 elements");
        if (sizes[d] == 1) continue;
        if (!sizes_.empty() && strides_.back() == strides[d] * sizes[d]) {
            sizes_.back() *= sizes[d];
            strides_.back() = strides[d];
        } else {
            sizes_.push_back(sizes[d]);
            strides_.push_back(strides[d]);
        }
    }
}

namespace {

template <class Value>
void gather_as(const Layout& layout, Value* buffer, const Value* data, int64_t start, int64_t count) {
    layout.runs(start, count, [&](int64_t offset, int64_t stride, int64_t length) {
        if (stride == 1) {
            std::memcpy(buffer, data + offset, static_cast<size_t>(length) * sizeof(Value));
        } else {
            for (int64_t i = 0; i < length; ++i) buffer[i] = data[offset + i * stride];
        }
        buffer += length;
    });
}

template <class Value>
void scatter_as(const Layout& layout, Value* data, const Value* buffer, int64_t start, int64_t count) {
    layout.runs(start, count, [&](int64_t offset, int64_t stride, int64_t length) {
        if (stride == 1) {
            std::memcpy(data + offset, buffer, static_cast<size_t>(length) * sizeof(Value));
        } else {
            for (int64_t i = 0; i < length; ++i) data[offset + i * stride] = buffer[i];
        }
        buffer += length;
    });
}

}  // namespace

void Layout::gather(void* buffer, const void* data, Dtype dtype, int64_t start, int64_t count) const {
    if (element_size(dtype) == 4) {
        gather_as(*this, static_cast<uint32_t*>(buffer), static_cast<const uint32_t*>(data), start, count);
    } else {
        gather_as(*this, static_cast<uint16_t*>(buffer), static_cast<const uint16_t*>(data), start, count);
    }
}

void Layout::scatter(void* data, const void* buffer, Dtype dtype, int64_t start, int64_t count) const {
    if (element_size(dtype) == 4) {
        scatter_as(*this, static_cast<uint32_t*>(data), static_cast<const uint32_t*>(buffer), start, count);
    } else {
        scatter_as(*this, static_cast<uint16_t*>(data), static_cast<const uint16_t*>(buffer), start, count);
    }
}

}  // namespace blockzo
