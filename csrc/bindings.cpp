// blockzo._native: integers in, nothing of torch. Every call checks shapes in Python before it comes here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cpu/threads.h"
#include "include/blockzo/cpu.h"

namespace py = pybind11;
using namespace blockzo;

namespace {

typedef std::tuple<uintptr_t, int, uint32_t, std::vector<int64_t>, std::vector<int64_t>> ViewTuple;
typedef std::tuple<ViewTuple, int64_t, std::vector<int64_t>> ShardTuple;
// coefficients come as double, which holds every float32 and which no float mode flushes to 0
typedef std::tuple<uint64_t, int, std::vector<uint32_t>, std::vector<double>, double, bool, bool, int, int64_t> StepTuple;

View make_view(const ViewTuple& v) {
  const auto& [data, dtype, stream, sizes, strides] = v;
  return View{reinterpret_cast<void*>(data), dtype, stream, sizes, strides};
}

Shard make_shard(const ShardTuple& s) { return Shard{make_view(std::get<0>(s)), std::get<1>(s), std::get<2>(s)}; }

Step make_step(const StepTuple& s) {
  const auto& [seed, distribution, directions, coefficients, factor, stochastic, joins, rank, width] = s;
  const IeeeArithmetic arithmetic;
  std::vector<float> numbers(coefficients.begin(), coefficients.end());
  return Step{seed, distribution, directions, std::move(numbers), (float)factor, stochastic, joins, rank, width};
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("compiled", &compiled);
  m.def("available", &available);
  m.def("chosen", &chosen);
  m.def("vendor", &vendor);
  m.def("choose", &choose);
  m.def("apply", [](const std::vector<ViewTuple>& tensors, const std::vector<StepTuple>& steps, int mode, int threads) {
    std::vector<View> views;
    for (const auto& t : tensors) views.push_back(make_view(t));
    std::vector<Step> all;
    for (const auto& s : steps) all.push_back(make_step(s));
    py::gil_scoped_release release;
    apply(views, all, static_cast<Mode>(mode), threads);
  });
  m.def("apply_shards",
        [](const std::vector<ShardTuple>& tensors, const std::vector<StepTuple>& steps, int mode, int threads) {
          std::vector<Shard> shards;
          for (const auto& t : tensors) shards.push_back(make_shard(t));
          std::vector<Step> all;
          for (const auto& s : steps) all.push_back(make_step(s));
          py::gil_scoped_release release;
          apply_shards(shards, all, static_cast<Mode>(mode), threads);
        });
  m.def("apply_scaled", [](const std::vector<std::tuple<ShardTuple, ViewTuple>>& tensors, const std::vector<StepTuple>& steps,
                           int mode, int threads) {
    std::vector<Scaled> all;
    for (const auto& [part, scales] : tensors) all.push_back(Scaled{make_shard(part), make_view(scales)});
    std::vector<Step> told;
    for (const auto& s : steps) told.push_back(make_step(s));
    py::gil_scoped_release release;
    apply_scaled(all, told, static_cast<Mode>(mode), threads);
  });
  m.def("copy", [](uintptr_t out, int out_dtype, uintptr_t source, int dtype, int64_t count, int64_t start,
                   const StepTuple& step, uint32_t stream, int threads) {
    const Step s = make_step(step);
    py::gil_scoped_release release;
    copy(reinterpret_cast<void*>(out), out_dtype, reinterpret_cast<const void*>(source), dtype, count, start, s, stream, threads);
  });
  m.def("panel", [](uintptr_t out, int out_dtype, uintptr_t source, int dtype, int64_t rows, int64_t width, int64_t apart,
                    int64_t start, const StepTuple& step, uint32_t stream, int threads) {
    const Step s = make_step(step);
    py::gil_scoped_release release;
    panel(reinterpret_cast<void*>(out), out_dtype, reinterpret_cast<const void*>(source), dtype, rows, width, apart, start, s,
          stream, threads);
  });
  m.def("rows", [](uintptr_t out, uintptr_t weight, int dtype, int64_t width, uintptr_t chosen_rows, int64_t count,
                   const StepTuple& step, uint32_t stream, int threads) {
    const Step s = make_step(step);
    py::gil_scoped_release release;
    rows(reinterpret_cast<void*>(out), reinterpret_cast<const void*>(weight), dtype, width,
         reinterpret_cast<const int64_t*>(chosen_rows), count, s, stream, threads);
  });
  // sizes: groups, tokens, rows, width. x: address, dtype, strides of groups and rows. weight: address, dtype, stride of rows,
  // address of the scales. noise: start, stride of rows. bias: address, dtype, stride of groups
  m.def("linear", [](const std::tuple<int64_t, int64_t, int64_t, int64_t>& sizes,
                     const std::tuple<uintptr_t, int, int64_t, int64_t>& x,
                     const std::tuple<uintptr_t, int, int64_t, uintptr_t>& weight, const std::tuple<int64_t, int64_t>& noise,
                     const std::tuple<uintptr_t, int, int64_t>& bias, uintptr_t out, bool narrow, const StepTuple& step, uint32_t stream,
                     int threads) {
    const auto at = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
    const auto [groups, tokens, rows, width] = sizes;
    const auto [x_at, x_dtype, x_group, x_row] = x;
    const auto [weight_at, weight_dtype, weight_row, scales] = weight;
    const auto [bias_at, bias_dtype, bias_group] = bias;
    const Linear call{groups,  tokens,  rows,       width,    at(x_at),        x_dtype,     x_group,
                      x_row,   at(weight_at), weight_dtype, weight_row, (const float*)at(scales), std::get<0>(noise),
                      std::get<1>(noise), at(bias_at), bias_dtype, bias_group, at(out), narrow};
    const Step s = make_step(step);
    py::gil_scoped_release release;
    linear(call, s, stream, threads);
  });
  m.def("project", [](const ViewTuple& tensor, const StepTuple& step, int threads) {
    const View view = make_view(tensor);
    const Step s = make_step(step);
    std::vector<double> totals(s.directions.size());
    {
      py::gil_scoped_release release;
      project(view, s, totals.data(), threads);
    }
    return totals;
  });
  m.def("project_shard", [](const ShardTuple& tensor, const StepTuple& step, int threads) {
    const Shard shard = make_shard(tensor);
    const Step s = make_step(step);
    std::vector<double> totals(s.directions.size());
    {
      py::gil_scoped_release release;
      project_shard(shard, s, totals.data(), threads);
    }
    return totals;
  });
  m.def("sample", [](uintptr_t out, int64_t count, int64_t start, uint64_t seed, int distribution, uint32_t stream,
                     uint32_t direction, int threads) {
    py::gil_scoped_release release;
    sample(reinterpret_cast<float*>(out), count, start, seed, distribution, stream, direction, threads);
  });
  m.def("factors", [](uintptr_t out, uint64_t first, int64_t count, uint64_t seed, int distribution, uint32_t stream,
                      uint32_t direction) {
    py::gil_scoped_release release;
    factors(reinterpret_cast<float*>(out), first, count, seed, distribution, stream, direction);
  });
  m.def("gather", [](uintptr_t dense, const ViewTuple& tensor, int64_t first, int64_t count) {
    gather(reinterpret_cast<void*>(dense), make_view(tensor), first, count);
  });
}
