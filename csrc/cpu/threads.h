// Work over threads. Which thread does what never shows in a result, nor does the float mode that a thread was in.
#pragma once
#include <pthread.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace blockzo {

// While it lives: round to nearest even, subnormals kept, as the noise contract asks. torch.set_flush_denormal would change bits.
class IeeeArithmetic {
 public:
#if defined(__x86_64__)
  IeeeArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80u); }
  ~IeeeArithmetic() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  IeeeArithmetic() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  }
  ~IeeeArithmetic() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
  IeeeArithmetic() : before_(0) {}
#endif
  IeeeArithmetic(const IeeeArithmetic&) = delete;
  IeeeArithmetic& operator=(const IeeeArithmetic&) = delete;

 private:
#if defined(__aarch64__)
  uint64_t before_;
#else
  unsigned before_;
#endif
};

// True in a child of fork: OpenMP's threads stayed with the parent, and waiting for them would never end.
inline std::atomic<bool> forked{false};
inline const int watching_for_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

constexpr int64_t GRAIN = 1 << 16;  // fewer weights than this a thread are not worth waking one

// Calls body(number, count) once for each number in [0, count), count <= threads; `total` is the work in weights.
template <class Body>
void in_parallel(int64_t total, int threads, const Body& body) {
  const auto work = [&](int number, int count) {
    const IeeeArithmetic arithmetic;
    body(number, count);
  };
  const int count = (int)std::min<int64_t>(threads, total / GRAIN);
  if (count <= 1 || forked) return work(0, 1);
#if defined(_OPENMP)
#pragma omp parallel num_threads(count)
  work(omp_get_thread_num(), omp_get_num_threads());
#else
  std::vector<std::thread> others;
  for (int t = 1; t < count; ++t) others.emplace_back([&work, t, count] { work(t, count); });
  work(0, count);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace blockzo
