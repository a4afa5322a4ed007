// Noise of a low rank: matrices and parts of them cut into runs of one row, and the factors that these meet.
#include "lowrank.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pieces.h"
#include "table.h"
#include "threads.h"

namespace blockzo {

// Any indices, those of the factors too, which lie above 2^63.
void factors(float* out, uint64_t first, int64_t count, uint64_t seed, int distribution, uint32_t stream, uint32_t direction) {
  const IeeeArithmetic arithmetic;
  const KernelTable* table = chosen_table();
  alignas(64) float buffer[TILE];
  for (int64_t done = 0; done < count;) {
    const uint64_t at = first + (uint64_t)done, base = at / GROUP * GROUP;
    const int64_t skip = (int64_t)(at - base), n = std::min(TILE - skip, count - done);
    table->fill(buffer, (int64_t)base, (skip + n + GROUP - 1) / GROUP * GROUP, seed, distribution, stream, direction);
    std::memcpy(out + done, buffer + skip, (size_t)n * 4);
    done += n;
  }
}

namespace {

constexpr uint64_t ROW_FACTORS = 1ull << 63, COLUMN_FACTORS = 3ull << 62;
constexpr int64_t MOST_FACTORS = 4096;  // directions times rank of the steps of one pass: a megabyte of factors
constexpr int64_t ROWS_AHEAD = 32;      // whose factors are made at a time

// Elements of one row that follow each other in the noise; `stride` apart in memory.
struct Run {
  const char* in;
  char* out;
  int64_t stride, row, column, count;
};

// Calls body(offset in memory, stride, row, column, count) for local elements [first, last) of a part, in row-major order.
template <class Body>
void each_run(const Shard& part, int64_t width, int64_t first, int64_t last, const Body& body) {
  std::vector<int64_t> sizes, strides, apart;
  for (size_t d = 0; d < part.local.sizes.size(); ++d)
    if (part.local.sizes[d] != 1) {
      sizes.push_back(part.local.sizes[d]);
      strides.push_back(part.local.strides[d]);
      apart.push_back(part.apart[d]);
    }
  const int64_t inner = sizes.empty() ? 1 : sizes.back(), step = sizes.empty() ? 1 : apart.back();
  const int64_t stride = sizes.empty() ? 1 : strides.back();
  for (int64_t at = first; at < last;) {
    const int64_t from = at % inner, to = std::min(inner, from + last - at);
    int64_t rest = at / inner, index = part.start + from * step, offset = from * stride;
    for (size_t d = sizes.size(); d-- > 1; rest /= sizes[d - 1]) {
      index += rest % sizes[d - 1] * apart[d - 1];
      offset += rest % sizes[d - 1] * strides[d - 1];
    }
    for (int64_t done = from; done < to;) {
      const int64_t column = index % width, n = step == 1 ? std::min(to - done, width - column) : 1;
      body(offset, stride, index / width, column, n);
      done += n;
      index += n * step;
      offset += n * stride;
    }
    at += to - from;
  }
}

// The columns that local elements [first, last) of a part have, from `begin` to before `end`.
struct Columns {
  int64_t begin, end = 0;
  Columns(const Shard& part, int64_t width, int64_t first, int64_t last) : begin(width) {
    each_run(part, width, first, last, [&](int64_t, int64_t, int64_t, int64_t column, int64_t count) {
      begin = std::min(begin, column);
      end = std::max(end, column + count);
    });
  }
};

// What one thread holds: factors of a range of columns and of some rows, and runs that wait to be moved together.
class Mover {
 public:
  Mover(const Step* steps, int64_t number, Mode mode, uint32_t stream, int in_dtype, int out_dtype, int64_t ahead)
      : table_(chosen_table()), steps_(steps), ahead_(ahead), sums_(0) {
    tile_.rank = steps[0].rank;
    tile_.norm = (float)(1.0 / std::sqrt((double)steps[0].rank));
    tile_.stream = stream;
    tile_.mode = mode;
    tile_.number = number;
    tile_.rows = 0;
    tile_.in_dtype = in_dtype;
    tile_.out_dtype = out_dtype;
    for (int64_t s = 0; s < number; ++s) sums_ += (int64_t)steps[s].directions.size();
    told_.resize((size_t)number);
    tile_.steps = told_.data();
  }

  // Columns of equal blocks, so that the factors of one fit into a second-level cache.
  int64_t span(int64_t width) const {
    const int64_t most = std::clamp<int64_t>((1 << 18) / (sums_ * tile_.rank), 64, LOW_RANK_SPAN);
    const int64_t blocks = (width + most - 1) / most;
    return std::min<int64_t>(LOW_RANK_SPAN, (width + blocks * LOW_RANK_PAD - 1) / (blocks * LOW_RANK_PAD) * LOW_RANK_PAD);
  }

  void take_columns(int64_t first, int64_t last) {
    flush();
    first_column_ = first;
    last_column_ = last;
    const int64_t rank = tile_.rank, count = last - first;
    pitch_ = count + LOW_RANK_PAD + 16;  // not a power of two, which would crowd few sets of the cache
    b_.assign((size_t)(sums_ * rank * pitch_ + LOW_RANK_PAD), 0.0f);
    std::vector<float> flat((size_t)(count * rank));
    float* out = b_.data();
    for (int64_t s = 0; s < tile_.number; ++s)
      for (uint32_t direction : steps_[s].directions) {
        factors(flat.data(), COLUMN_FACTORS + (uint64_t)(first * rank), count * rank, steps_[s].seed, steps_[s].distribution,
                tile_.stream, direction);
        for (int64_t j = 0; j < count; ++j)
          for (int64_t q = 0; q < rank; ++q) out[q * pitch_ + j] = flat[(size_t)(j * rank + q)];
        out += rank * pitch_;
      }
  }

  // Moves the part of a run that lies in the columns held.
  void take(Run run) {
    const int64_t item = size_of(tile_.in_dtype), out_item = size_of(tile_.out_dtype);
    int64_t from = std::max(run.column, first_column_);
    const int64_t to = std::min(run.column + run.count, last_column_);
    for (; from < to; from += LOW_RANK_SPAN) {
      Run part = run;
      part.in += (from - run.column) * run.stride * item;
      part.out += (from - run.column) * run.stride * out_item;
      part.column = from;
      part.count = std::min<int64_t>(LOW_RANK_SPAN, to - from);
      place(part);
    }
  }

  void flush() {
    if (!waiting_) return;
    const Run& first = runs_[0];
    int64_t before = 0;
    for (int64_t s = 0; s < tile_.number; ++s) {
      const int64_t rank = tile_.rank;
      told_[(size_t)s] = {steps_ + s, a_.data() + (before * held_rows_ + first.row - first_row_) * rank, held_rows_ * rank,
                          b_.data() + before * rank * pitch_ + first.column - first_column_, pitch_};
      before += (int64_t)steps_[s].directions.size();
    }
    tile_.rows = waiting_;
    tile_.columns = (int)first.count;
    for (int r = 0; r < waiting_; ++r) {
      const Run& run = runs_[r];
      const bool apart = run.stride != 1;
      if (apart) copy_strided(buffer_[r], 1, run.in, run.stride, run.count);
      tile_.in[r] = apart ? buffer_[r] : run.in;
      tile_.out[r] = apart ? buffer_[r] : run.out;
      tile_.index[r] = (uint64_t)(run.row * steps_[0].width + run.column);
    }
    table_->low_rank(tile_);
    for (int r = 0; r < waiting_; ++r)
      if (runs_[r].stride != 1) copy_strided(runs_[r].out, runs_[r].stride, buffer_[r], 1, runs_[r].count);
    waiting_ = 0;
  }

 private:
  void place(const Run& run) {
    if (waiting_) {
      const Run& first = runs_[0];
      const bool next = run.row == first.row + waiting_ && run.column == first.column && run.count == first.count;
      if (!next || waiting_ == LOW_RANK_ROWS) flush();
    }
    if (run.row < first_row_ || run.row >= first_row_ + held_rows_) {
      flush();
      take_rows(run.row);
    }
    runs_[waiting_++] = run;
  }

  void take_rows(int64_t row) {
    const int64_t rank = tile_.rank;
    first_row_ = row;
    held_rows_ = ahead_;
    a_.resize((size_t)(sums_ * held_rows_ * rank));
    float* out = a_.data();
    for (int64_t s = 0; s < tile_.number; ++s)
      for (uint32_t direction : steps_[s].directions) {
        factors(out, ROW_FACTORS + (uint64_t)(row * rank), held_rows_ * rank, steps_[s].seed, steps_[s].distribution, tile_.stream,
                direction);
        out += held_rows_ * rank;
      }
  }

  // Weights are moved in place where they lie apart, so both sides have one dtype.
  void copy_strided(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t count) const {
    const int64_t item = size_of(tile_.in_dtype);
    for (int64_t j = 0; j < count; ++j) std::memcpy(to + j * to_stride * item, from + j * from_stride * item, (size_t)item);
  }

  const KernelTable* table_;
  const Step* steps_;
  const int64_t ahead_;
  int64_t sums_;
  LowRankTile tile_;
  std::vector<LowRankStep> told_;
  std::vector<float> a_, b_;
  int64_t first_column_ = 0, last_column_ = 0, pitch_ = 0, first_row_ = 0, held_rows_ = 0;
  Run runs_[LOW_RANK_ROWS];
  int waiting_ = 0;
  alignas(64) char buffer_[LOW_RANK_ROWS][LOW_RANK_SPAN * 4];
};

// As many steps as one pass takes; those that are joined are in one.
int64_t batch_of(const std::vector<Step>& steps, int64_t first) {
  int64_t last = first, held = 0;
  do {
    held += (int64_t)steps[(size_t)last].directions.size() * steps[0].rank;
    ++last;
  } while (last < (int64_t)steps.size() &&
           (steps[(size_t)last - 1].joins || held + (int64_t)steps[(size_t)last].directions.size() * steps[0].rank <= MOST_FACTORS));
  return last;
}

}  // namespace

void low_rank_apply(const std::vector<Shard>& parts, const std::vector<Step>& steps, Mode mode, int threads) {
  int64_t total = 0;
  for (const Shard& part : parts) total += elements(part.local);
  if (steps.empty() || !total) return;
  const int64_t width = steps[0].width;
  for (int64_t first = 0, end; first < (int64_t)steps.size(); first = end) {
    end = batch_of(steps, first);
    in_parallel(total * (end - first), threads, [&](int number, int of) {
      int64_t before = 0;
      for (const Shard& part : parts) {
        const View& local = part.local;
        const auto [from, to] = share(before, elements(local), total, number, of);
        before += elements(local);
        if (from == to) continue;
        Mover mover(steps.data() + first, end - first, mode, local.stream, local.dtype, local.dtype, ROWS_AHEAD);
        const Columns columns(part, width, from, to);
        const int64_t span = mover.span(columns.end - columns.begin), item = size_of(local.dtype);
        for (int64_t column = columns.begin; column < columns.end; column += span) {
          mover.take_columns(column, std::min(columns.end, column + span));
          each_run(part, width, from, to, [&](int64_t offset, int64_t stride, int64_t row, int64_t begin, int64_t count) {
            char* place = (char*)local.data + offset * item;
            mover.take({place, place, stride, row, begin, count});
          });
          mover.flush();
        }
      }
    });
  }
}

void low_rank_copy(void* out, int out_dtype, const void* source, int dtype, int64_t count, int64_t start, const Step& step,
                   uint32_t stream, int threads) {
  const Shard part{View{nullptr, dtype, stream, {count}, {1}}, start, {1}};
  in_parallel(count, threads, [&](int number, int of) {
    const auto [from, to] = share(0, count, count, number, of);
    if (from == to) return;
    Mover mover(&step, 1, PERTURB, stream, dtype, out_dtype, ROWS_AHEAD);
    const Columns columns(part, step.width, from, to);
    const int64_t span = mover.span(columns.end - columns.begin);
    for (int64_t column = columns.begin; column < columns.end; column += span) {
      mover.take_columns(column, std::min(columns.end, column + span));
      each_run(part, step.width, from, to, [&](int64_t offset, int64_t, int64_t row, int64_t begin, int64_t n) {
        mover.take({(const char*)source + offset * size_of(dtype), (char*)out + offset * size_of(out_dtype), 1, row, begin, n});
      });
      mover.flush();
    }
  });
}

void low_rank_rows(void* out, const void* weight, int dtype, int64_t width, const int64_t* chosen_rows, int64_t count,
                   const Step& step, uint32_t stream, int threads) {
  const int64_t item = size_of(dtype);
  in_parallel(count * width, threads, [&](int number, int of) {
    Mover mover(&step, 1, PERTURB, stream, dtype, dtype, 1);
    const int64_t span = mover.span(width);
    for (int64_t column = 0; column < width; column += span) {
      mover.take_columns(column, std::min(width, column + span));
      for (int64_t m = count * number / of; m < count * (number + 1) / of; ++m)
        mover.take({(const char*)weight + chosen_rows[m] * width * item, (char*)out + m * width * item, 1, chosen_rows[m], 0, width});
      mover.flush();
    }
  });
}

void low_rank_project(const Shard& part, const Step& step, double* totals, int threads) {
  const int64_t size = elements(part.local), item = size_of(part.local.dtype), chunks = (size + CHUNK - 1) / CHUNK;
  const KernelTable* table = chosen_table();
  std::fill(totals, totals + step.directions.size(), 0.0);
  if (!size) return;
  const Columns columns(part, step.width, 0, size);
  std::vector<double> sums((size_t)chunks);
  for (size_t k = 0; k < step.directions.size(); ++k) {
    Step one = step;
    one.directions = {step.directions[k]};
    one.coefficients = {1.0f};
    in_parallel(size, threads, [&](int number, int of) {
      Mover mover(&one, 1, PERTURB, part.local.stream, FLOAT32, FLOAT32, ROWS_AHEAD);
      mover.take_columns(columns.begin, columns.end);
      alignas(64) float x[CHUNK], z[CHUNK];
      alignas(64) char raw[CHUNK * 4];
      for (int64_t c = chunks * number / of; c < chunks * (number + 1) / of; ++c) {
        int64_t filled = 0;
        std::memset(raw, 0, sizeof raw);
        std::memset(z, 0, sizeof z);
        each_run(part, step.width, c * CHUNK, std::min(size, (c + 1) * CHUNK),
                 [&](int64_t offset, int64_t stride, int64_t row, int64_t column, int64_t n) {
                   for (int64_t j = 0; j < n; ++j)
                     std::memcpy(raw + (filled + j) * item, (const char*)part.local.data + (offset + j * stride) * item, (size_t)item);
                   mover.take({(const char*)(z + filled), (char*)(z + filled), 1, row, column, n});
                   filled += n;
                 });
        mover.flush();
        table->widen(raw, part.local.dtype, x, CHUNK);
        sums[(size_t)c] = table->dot(x, z);
      }
    });
    for (double sum : sums) totals[k] += sum;
  }
}

}  // namespace blockzo
