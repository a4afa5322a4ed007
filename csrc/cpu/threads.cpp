// OpenMP where it was compiled in, as the pool is then torch's own (two spinning pools are many times slower); plain threads elsewhere.
#include "threads.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if !defined(_OPENMP)
#include <thread>
#endif

namespace blockzo {
namespace {

// A child of fork has none of the pool's threads and would wait for them for ever: it works alone.
std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
const int watched = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

// Nearest even with subnormals while it lives: torch.set_flush_denormal would change the numbers.
class IeeeArithmetic {
  public:
#if defined(__x86_64__)
    IeeeArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80u); }
    ~IeeeArithmetic() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#elif defined(__aarch64__)
    IeeeArithmetic() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~IeeeArithmetic() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

  private:
    uint64_t before_;
#endif
};

}  // namespace

void parallel(int64_t count, int threads, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    const auto work = [&] {
        const IeeeArithmetic arithmetic;
        try {
            for (int64_t piece = next++; piece < count; piece = next++) body(piece);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!failure) failure = std::current_exception();
            next = count;
        }
    };
    if (threads <= 1 || count <= 1 || forked.load()) {
        work();
    } else {
#if defined(_OPENMP)
        // always the full number: another one would make OpenMP rebuild its pool
#pragma omp parallel num_threads(threads)
        work();
#else
        std::vector<std::thread> helpers;
        for (int t = 1; t < threads && t < count; ++t) {
            try {
                helpers.emplace_back(work);
            } catch (const std::exception&) {
                break;  // no more threads to be had: the others do the work
            }
        }
        work();
        for (std::thread& helper : helpers) helper.join();
#endif
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace blockzo
