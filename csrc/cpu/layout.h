// Where the logical elements of a strided tensor lie: dimensions merged where possible, then runs along the last of them.
#pragma once

#include <cstdint>
#include <vector>

#include "blockzo/cpu.h"

namespace blockzo {

int64_t element_size(Dtype dtype);

class Layout {
  public:
    // Throws std::invalid_argument where sizes and strides do not fit together, or the count leaves 63 bits.
    Layout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);

    int64_t count() const { return count_; }
    bool contiguous() const { return sizes_.empty() || (sizes_.size() == 1 && strides_[0] == 1); }

    // Calls visit(offset, stride, length) for the runs that make up elements [start, start + count), in order.
    template <class Visit>
    void runs(int64_t start, int64_t count, Visit visit) const {
        if (count <= 0) return;
        if (sizes_.empty()) {
            visit(int64_t{0}, int64_t{1}, count);
            return;
        }
        const size_t last = sizes_.size() - 1;
        std::vector<int64_t> place(sizes_.size());
        int64_t rest = start, offset = 0;
        for (size_t d = sizes_.size(); d-- > 0;) {
            place[d] = rest % sizes_[d];
            rest /= sizes_[d];
            offset += place[d] * strides_[d];
        }
        while (count > 0) {
            const int64_t room = sizes_[last] - place[last], length = count < room ? count : room;
            visit(offset, strides_[last], length);
            count -= length;
            offset += length * strides_[last];
            place[last] += length;
            for (size_t d = last; d > 0 && place[d] == sizes_[d]; --d) {
                offset += strides_[d - 1] - sizes_[d] * strides_[d];
                place[d] = 0;
                ++place[d - 1];
            }
        }
    }

    // Elements [start, start + count) of `data` to or from a dense buffer.
    void gather(void* buffer, const void* data, Dtype dtype, int64_t start, int64_t count) const;
    void scatter(void* data, const void* buffer, Dtype dtype, int64_t start, int64_t count) const;

  private:
    std::vector<int64_t> sizes_, strides_;
    int64_t count_ = 1;
};

}  // namespace blockzo
